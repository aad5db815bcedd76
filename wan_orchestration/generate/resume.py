"""The finished segments of an unfinished video, kept so that a killed run can go on from the last of them."""

import fcntl
import json
import os
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Annotated, Self

import numpy as np
from pydantic import BaseModel, Field

from wan_orchestration.errors import BadInput
from wan_orchestration.files import remove, replacing
from wan_orchestration.protocol.messages import BY_ALIAS, Seconds
from wan_orchestration.video.writer import write_segment


class SegmentRecord(BaseModel):
    """One finished segment: its frames in the video, seconds spent, and whether every value was finite."""

    frames: int
    seconds: Seconds
    finite: bool
    colours: tuple[float, ...] | None = None
    """What later segments' colours are matched to, where that is asked for."""
    placement: str | None = None
    """Where the models lay."""


class _State(BaseModel):
    model_config = BY_ALIAS

    identity: str
    segments: Annotated[list[SegmentRecord], Field(alias="clips")] = []
    restarted: str | None = None


class UnfinishedVideo:
    """The folder `<output>/.work`, held by one process at a time.

    A segment counts as finished once `state.json` says so; it is renamed into place once the segment's files
    are whole.

    Args:
        output: folder of the finished video; made if need be.
        identities: of everything that decides the frames. Clips made under none of them are dropped.

    Raises:
        BadInput: the folder cannot be written to, or another process is at work on the same video.
    """

    def __init__(self, output: Path, *identities: str) -> None:
        self.folder = output / ".work"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise BadInput(f"{output}: the output folder cannot be written to: {error.strerror}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise BadInput(f"{output}: another process is generating this video right now") from None
        self._state = self._read_state()
        if self._state.identity not in identities:
            self.start(identities[0])

    def start(self, identity: str, reason: str | None = None) -> None:
        """Begin the video under an identity; `reason` says why finished segments of another are dropped."""
        self._clear()
        self._state = _State(identity=identity, restarted=reason)

    @property
    def identity(self) -> str:
        """Of the segments, those to come included."""
        return self._state.identity

    @property
    def restarted(self) -> str | None:
        """Why the segments were made anew, if they were; known again after a break once one of them is finished."""
        return self._state.restarted

    @property
    def segments(self) -> Sequence[SegmentRecord]:
        """Records of the finished segments, the first first."""
        return self._state.segments

    def guide(self) -> np.ndarray | None:
        """(3, refert_num, H, W) float32, the last frames of the last finished segment; None before the first."""
        return np.load(self._file("guide", len(self.segments) - 1, "npy")) if self.segments else None

    def finish_segment(
        self,
        frames: np.ndarray,
        fps: Fraction,
        guide: np.ndarray,
        record: SegmentRecord,
        exact: np.ndarray | None = None,
    ) -> None:
        """Put a finished segment on disk.

        Args:
            frames: (n, H, W, 3) uint8 RGB, the segment's part of the video.
            fps: of the video.
            guide: (3, refert_num, H, W) float32 for the next segment.
            record: kept for the result.
            exact: (3, n, H, W) float32 of the same frames, where the caller wants them unquantised.
        """
        index = len(self.segments)
        write_segment(self._file("clip", index, "mp4"), frames, fps)
        np.save(self._file("guide", index, "npy"), guide)
        if exact is not None:
            np.save(self._file("exact", index, "npy"), exact)
        state = self._state.model_copy(update={"segments": [*self.segments, record]})
        with replacing(self.folder / "state.json") as part:
            part.write_text(state.model_dump_json())
        self._state = state
        if index:
            self._file("guide", index - 1, "npy").unlink(missing_ok=True)

    def files(self) -> list[Path]:
        return [self._file("clip", index, "mp4") for index in range(len(self.segments))]

    def save_exact(self, path: Path) -> None:
        """Join the unquantised frames, a segment at a time, into an npz of one array `frames`, (3, T, H, W) float32."""
        parts = [np.load(self._file("exact", i, "npy"), mmap_mode="r") for i in range(len(self.segments))]
        channels, _, height, width = parts[0].shape
        header = {
            "descr": np.lib.format.dtype_to_descr(parts[0].dtype),
            "fortran_order": False,
            "shape": (channels, sum(part.shape[1] for part in parts), height, width),
        }
        with (
            replacing(path) as beside,
            zipfile.ZipFile(beside, "w") as archive,
            archive.open("frames.npy", "w", force_zip64=True) as entry,
        ):
            np.lib.format.write_array_header_1_0(entry, header)
            for channel in range(channels):
                for part in parts:
                    entry.write(part[channel].tobytes())

    def discard(self) -> None:
        """Remove the folder once the video is in its place."""
        remove(self.folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._lock)
        if self.folder.exists() and not self.segments:
            remove(self.folder)
            with suppress(OSError):  # holds an earlier video
                self.folder.parent.rmdir()

    def _file(self, kind: str, index: int, suffix: str) -> Path:
        return self.folder / f"{kind}_{index:05d}.{suffix}"

    def _read_state(self) -> _State:
        try:
            return _State(**json.loads((self.folder / "state.json").read_text()))
        except (OSError, ValueError):
            return _State(identity="")

    def _clear(self) -> None:
        for file in self.folder.iterdir():
            if file.name != "lock":
                remove(file)
