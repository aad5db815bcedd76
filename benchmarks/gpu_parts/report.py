"""The figures of a check as markdown tables."""

from collections.abc import Iterable
from typing import Any

STEPS = 20
FRAMES = 77
Row = dict[str, Any]


def table(rows: list[Row], order: Iterable[str], price: float | None, tiny: bool = False) -> str:
    """What a segment of 20 denoising steps takes, then all parts in order with figures, aims and outcomes."""
    sections = [_section(part, [row for row in rows if row["part"] == part]) for part in order]
    return "\n\n".join(["# GPU check", *(one for one in (_segments(rows, price, tiny), *sections) if one)]) + "\n"


def _section(part: str, rows: list[Row]) -> str:
    end = next((row for row in rows if "status" in row), None)
    measured = [row for row in rows if "figures" in row]
    if end is None and not measured:
        return ""
    how = f"{end['status']}, {end['seconds']:.0f} s" if end else "running"
    why = f": {end['why']}" if end and end["why"] else ""
    lines = [f"## {part} ({how})" + (f"\n\n{why[2:]}" if why else "")]
    if measured:
        lines.append(_markdown(measured))
    return "\n\n".join(lines)


def _markdown(rows: list[Row]) -> str:
    columns = list(dict.fromkeys(name for row in rows for name in row["figures"]))
    aims, notes = any(row["aim"] for row in rows), any(row["note"] for row in rows)
    head = ["", *columns, *(["aim"] if aims else []), *(["note"] if notes else [])]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        cells = [row["what"], *(_shown(row["figures"].get(name)) for name in columns)]
        cells += [_aim(row)] if aims else []
        cells += [row["note"]] if notes else []
        lines.append(cells)
    return "\n".join(
        "| " + " | ".join(str(cell).replace("|", "/").replace("\n", " ") for cell in line) + " |" for line in lines
    )


def _aim(row: Row) -> str:
    if not row["aim"] or row["met"] is None:
        return row["aim"]
    return f"{row['aim']}: {'yes' if row['met'] else 'NO'}"


def _shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)


def _segments(rows: list[Row], price: float | None, tiny: bool) -> str:
    """Seconds, frames a second and dollars of a segment after the first, with the fastest exact denoising step."""
    lines = []
    face = next((row["face"] for row in rows if "face" in row), 0.0)
    for size in dict.fromkeys(row["size"] for row in rows if "size" in row):
        steps = [row["step"] for row in rows if row.get("size") == size and "step" in row]
        # The VAE's row lacks the face. A whole job, which is measured later, includes everything.
        outside = [
            row["outside"] + (face if row["part"] == "vae" else 0.0)
            for row in rows
            if row.get("size") == size and "outside" in row
        ]
        if not steps or not outside:
            continue
        segment = STEPS * min(steps) + outside[-1]
        share = outside[-1] / segment
        figures = {"s a step": min(steps), "s outside the steps": outside[-1], "s a segment": segment}
        figures |= {"outside": f"{share:.1%}", "frames a second": (FRAMES - 1) / segment}
        if price is not None:
            figures["$ a segment"] = f"{price * segment / 3600:.4f}"
            figures["$ a minute of video at 30 fps"] = f"{price * segment / 3600 * 1800 / (FRAMES - 1):.2f}"
        lines.append(
            {
                "what": size,
                "figures": figures,
                "aim": "outside <= 6 %",
                "met": None if tiny else share <= 0.06,
                "note": "",
            }
        )
    if not lines:
        return ""
    text = f"A segment of {FRAMES} frames after the first, {STEPS} steps; extrapolated from single steps and the rest"
    return f"{text}:\n\n{_markdown(lines)}"
