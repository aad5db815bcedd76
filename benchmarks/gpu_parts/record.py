"""The input of a part, and the file of its results."""

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
    """The input of every part."""

    out: Path
    scratch: Path
    """An empty folder for this part, removed afterwards."""
    device: str
    tiny: bool
    parity: Path | None

    def dumps(self) -> str:
        return json.dumps(asdict(self), default=str)

    @classmethod
    def loads(cls, text: str) -> "Work":
        fields = json.loads(text)
        paths = {name: fields[name] and Path(fields[name]) for name in ("out", "scratch", "parity")}
        return cls(**fields | paths)

    def need_cuda(self) -> None:
        if self.device != "cuda":
            raise Skipped("needs a CUDA device")


def results_file(out: Path) -> Path:
    return out / "results.jsonl"


def append(out: Path, row: Mapping[str, Any]) -> None:
    """Write one line at once, so that a part that is killed keeps its rows."""
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
        """Write a row of figures by column. `met` says whether the aim is met. `more` is for the report only."""
        # JSON has no infinity, which is the PSNR of equal frames.
        figures = {name: str(value) if value in (math.inf, -math.inf) else value for name, value in figures.items()}
        row = {"part": self.part, "what": what, "figures": figures, "aim": aim, "met": met, "note": note, **more}
        append(self.out, row)
        shown = ", ".join(f"{name} {value}" for name, value in figures.items())
        print(f"{what}: {shown} {note}", flush=True)

    def check(self, what: str, met: bool, figures: Mapping[str, Figure], aim: str) -> None:
        """Write a row that fails the part if the aim is not met."""
        self.row(what, figures, aim, bool(met), check=True)

    def cannot(self, what: str, error: Exception | str) -> None:
        """Write a row for something that could not be measured."""
        lines = str(error).strip().splitlines() or [type(error).__name__]
        self.row(what, {}, note=f"not measured: {lines[0][:200]}")
