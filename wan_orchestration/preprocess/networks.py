"""Keeps the networks of estimators open from one job to the next: opening them takes longer than a short video."""

import gc
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

Kind = Literal["light", "light outline", "vitpose", "sam2"]
Device = Literal["cpu", "cuda"]

T = TypeVar("T")

_Stamp = tuple[Path, int, int, int]
"""A file's path, inode, time of change in ns, and size in bytes."""


@dataclass(frozen=True)
class _Kept:
    stamps: list[_Stamp]
    networks: Any


class Networks:
    """The opened networks of a process: for each kind and device the last ones, which hold no state of a video.

    A file that was replaced is opened again. Two threads must not use it at the same time.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[Kind, Device], _Kept] = {}
        self.make_room: Callable[[], bool] = lambda: False
        """Frees memory that others in this process hold. Returns whether there was any."""

    def open(self, kind: Kind, device: Device, files: Sequence[Path], load: Callable[[], T]) -> T:
        """The networks in these files on a device. Calls `load` if they are not open, and raises its errors.

        `load` may download missing files.
        """
        before = _stamps(files)
        kept = self._kept.get((kind, device))
        if kept is not None and kept.stamps == before:
            return kept.networks
        # Frees their memory before others are loaded.
        del kept
        if self._kept.pop((kind, device), None) is not None or device == "cuda":
            _release_memory()
        networks = load()
        # If a file is replaced while it is loaded, its old stamp makes the next job open it again.
        stamps = before if len(before) == len(files) else _stamps(files)
        self._kept[kind, device] = _Kept(stamps, networks)
        return networks

    def bytes_on(self, device: str) -> int:
        """Bytes of the files whose networks are open on a device. In memory, they take this or up to twice as much."""
        return sum(stamp[-1] for (_, where), kept in self._kept.items() if where == device for stamp in kept.stamps)

    def free(self) -> bool:
        """Drops all networks and releases their memory, also the device's. Returns whether any were open.

        After an error, call it outside of the `except` block: the error's traceback holds the networks.
        """
        if not self._kept:
            return False
        self._kept.clear()
        _release_memory()
        return True


def _release_memory() -> None:
    """Frees dropped networks, and the device memory that PyTorch only caches: onnxruntime cannot use it."""
    gc.collect()
    torch = sys.modules.get("torch")  # not loaded if no network needed it
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _stamps(files: Sequence[Path]) -> list[_Stamp]:
    """The stamps of the files that exist."""
    facts = [(file, file.stat()) for file in files if file.exists()]
    return [(file, stat.st_ino, stat.st_mtime_ns, stat.st_size) for file, stat in facts]
