"""What a part is told, and where it writes what it has measured."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

Figure = float | int | str | None


class Skipped(Exception):
    """A part cannot be run here; the message says why."""


@dataclass(frozen=True)
class Work:
    """What all parts are told."""

    out: Path
    scratch: Path
    """An empty folder of the part's own, removed afterwards."""
    device: str
    tiny: bool
    parity: Path | None

    def dumps(self) -> str:
        return json.dumps(asdict(self), default=str)

    @classmethod
    def loads(cls, text: str) -> "Work":
        told = json.loads(text)
        paths = {name: told[name] and Path(told[name]) for name in ("out", "scratch", "parity")}
        return cls(**told | paths)

    def need_cuda(self) -> None:
        if self.device != "cuda":
            raise Skipped("needs a CUDA device")


def results_file(out: Path) -> Path:
    return out / "results.jsonl"


def append(out: Path, row: Mapping[str, Any]) -> None:
    """One line, at once: what a part has measured before it is killed stays."""
    with results_file(out).open("a") as file:
        file.write(json.dumps(row) + "\n")


def read(out: Path) -> list[dict[str, Any]]:
    file = results_file(out)
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


class Record:
    """Rows of one part."""

    def __init__(self, part: str, out: Path) -> None:
        self.part, self.out = part, out

    def row(
        self,
        what: str,
        figures: Mapping[str, Figure],
        aim: str = "",
        met: bool | None = None,
        note: str = "",
        **more: Any,
    ) -> None:
        """Keep a row of figures by column. `met` says whether the aim is; `more` is for the report alone."""
        # JSON knows no infinity, which is the PSNR of equal frames.
        figures = {name: str(value) if value in (math.inf, -math.inf) else value for name, value in figures.items()}
        row = {"part": self.part, "what": what, "figures": figures, "aim": aim, "met": met, "note": note, **more}
        append(self.out, row)
        shown = ", ".join(f"{name} {value}" for name, value in figures.items())
        print(f"{what}: {shown} {note}", flush=True)

    def check(self, what: str, met: bool, figures: Mapping[str, Figure], aim: str) -> None:
        """A row that fails the part where the aim is not met."""
        self.row(what, figures, aim, bool(met), check=True)

    def cannot(self, what: str, error: Exception | str) -> None:
        """A row for what could not be measured."""
        lines = str(error).strip().splitlines() or [type(error).__name__]
        self.row(what, {}, note=f"not measured: {lines[0][:200]}")
