"""Keeps the finished segments of an unfinished video, so that an interrupted run can be resumed."""

import fcntl
import json
import os
import time
import zipfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Self

import numpy as np
from pydantic import BaseModel, Field

from wan_orchestration.errors import BadInput
from wan_orchestration.files import remove, replacing
from wan_orchestration.protocol.messages import BY_ALIAS, SegmentFacts, Take, Task
from wan_orchestration.video.writer import write_lossless, write_segment

LOCK_SECONDS, POLL_SECONDS = 120.0, 0.2
"""How long to wait for another process that generates the same video, and how often to look. A cancelled launch stops
within a minute, or is ended."""
FILES = {"clip": "mp4", "guide": "npy", "exact": "npy"}
"""The files of a take, by their kind: the encoded frames, the guide and the unquantised frames."""


class KeptTake(BaseModel):
    """A finished take of the segment in progress."""

    facts: SegmentFacts
    """Of the segment with this take alone."""
    take: Take
    colours: tuple[float, ...] | None = None
    """As in `UnfinishedVideo.colours`, if this take is kept."""


class _State(BaseModel):
    """The content of `state.json`."""

    model_config = BY_ALIAS

    fingerprint: Annotated[str, Field(alias="identity")] = ""
    segments: Annotated[list[SegmentFacts], Field(alias="clips")] = []
    finite: bool = True
    """False where a decoded frame held NaN or infinity."""
    colours: tuple[float, ...] | None = None
    """The colours that later segments are matched to, if the settings ask for that."""
    restarted: str | None = None
    takes: list[KeptTake] = []
    """The finished takes of the segment after the last one in `segments`."""


class UnfinishedVideo:
    """The finished segments of a task, in the folder `<output>/.work`. One process at a time can open it.

    Each of several characters has a subfolder. The first one locks `.work` for all.

    A segment, or a take of the segment in progress, counts as finished once `state.json` lists it. That file is
    replaced after the segment's or the take's own files are complete. The files of a take keep their names when it
    becomes the segment.

    Args:
        task: the task.
        character: whose pass this is, from 1; 0 if there is only one.
        lossless: whether the segments are written lossless, because another video is made from them.
    """

    def __init__(self, task: Task, character: int = 0, lossless: bool = False) -> None:
        self.lossless = lossless
        self._work = task.output / ".work"
        self.folder = self._work / f"character_{character}" if character else self._work
        self.resumed = 0
        """Segments that an earlier run finished and this run keeps."""
        self._fps, self._steps = task.clips.driving.fps, task.settings.sampling_steps
        self._locks, self._opened = character < 2, False
        self._lock: int | None = None
        self._state = _State()

    def open(self, *fingerprints: str) -> None:
        """Lock `.work`, and drop the segments unless they were generated under one of the fingerprints.

        Waits for a launch that stops generating this video because its run is gone.

        A fingerprint is a hash of everything that decides the frames.

        Raises:
            BadInput: the folder cannot be written to, or another process is generating the same video.
        """
        if self._locks:
            self._lock = _lock(self._work)
        self.folder.mkdir(exist_ok=True)
        self._opened = True
        self._state = self._read_state()
        if self.fingerprint in fingerprints:
            self.resumed = len(self.segments)
        else:
            self.restart(fingerprints[0])

    def restart(self, fingerprint: str, reason: str | None = None) -> None:
        """Drop all segments. `reason` tells users why they are generated again."""
        for file in self.folder.iterdir():
            if file.name != "lock":
                remove(file)
        self._state = _State(fingerprint=fingerprint, restarted=reason)
        self.resumed = 0

    @property
    def fingerprint(self) -> str:
        """Of the finished segments and of those that follow."""
        return self._state.fingerprint

    @property
    def segments(self) -> list[SegmentFacts]:
        """The finished segments, in order."""
        return self._state.segments

    @property
    def finite(self) -> bool:
        """False where a decoded frame of a finished segment held NaN or infinity."""
        return self._state.finite

    @property
    def colours(self) -> tuple[float, ...] | None:
        """The colours that later segments are matched to, if the settings ask for that."""
        return self._state.colours

    @property
    def restarted(self) -> str | None:
        """Why finished segments were generated again; None if they were not. It is saved with the next segment."""
        return self._state.restarted

    @property
    def takes(self) -> list[KeptTake]:
        """The finished takes of the segment that follows the finished segments, in order."""
        return self._state.takes

    def guide(self) -> np.ndarray | None:
        """(3, refert_num, H, W) float32, the last frames of the last finished segment; None before the first."""
        return np.load(self._segment_file("guide", len(self.segments) - 1)) if self.segments else None

    def finish_segment(
        self,
        facts: SegmentFacts,
        frames: np.ndarray,
        guide: np.ndarray,
        finite: bool,
        colours: tuple[float, ...] | None = None,
        exact: np.ndarray | None = None,
    ) -> None:
        """Write a finished segment to disk.

        Args:
            facts: of the segment. If they list takes, the frames are those of the kept one.
            frames: (n, H, W, 3) uint8 RGB, the segment's part of the video.
            guide: (3, refert_num, H, W) float32 for the next segment.
            finite: whether every value of the decoded frames was finite.
            colours: those that later segments are matched to, if the settings ask for that.
            exact: (3, n, H, W) float32, the same frames unquantised, if the task asks for them.
        """
        self._write(facts.kept.take if facts.kept else 0, frames, guide, exact)
        self._finish(facts, finite, colours)

    def keep_take(self, kept: KeptTake, frames: np.ndarray, guide: np.ndarray, exact: np.ndarray | None = None) -> None:
        """Write a take of the segment in progress to disk. The arrays are those of `finish_segment`."""
        self._write(kept.take.take, frames, guide, exact)
        self._replace_state(takes=[*self.takes, kept])

    def choose_take(self, facts: SegmentFacts) -> None:
        """Finish the segment in progress with one of the takes on disk: the one that the facts name as kept."""
        kept = next(one for one in self.takes if facts.kept and one.take.take == facts.kept.take)
        self._finish(facts, kept.take.measures.finite, kept.colours)

    def _write(self, take: int, frames: np.ndarray, guide: np.ndarray, exact: np.ndarray | None) -> None:
        index = len(self.segments)
        write = write_lossless if self.lossless else write_segment
        write(self._file("clip", index, take), frames, self._fps)
        np.save(self._file("guide", index, take), guide)
        if exact is not None:
            np.save(self._file("exact", index, take), exact)

    def _finish(self, facts: SegmentFacts, finite: bool, colours: tuple[float, ...] | None) -> None:
        index = len(self.segments)
        guide_before = self._segment_file("guide", index - 1) if index else None
        self._replace_state(segments=[*self.segments, facts], finite=self.finite and finite, colours=colours, takes=[])
        if guide_before:
            guide_before.unlink(missing_ok=True)
        for take in facts.takes:
            if not take.kept:
                for kind in FILES:
                    self._file(kind, index, take.take).unlink(missing_ok=True)

    def _replace_state(self, **update: Any) -> None:
        state = self._state.model_copy(update=update)
        with replacing(self.folder / "state.json") as part:
            part.write_text(state.model_dump_json())
        self._state = state

    def files(self) -> list[Path]:
        """The finished segments' video files, in order."""
        return [self._segment_file("clip", index) for index in range(len(self.segments))]

    def save_exact(self, path: Path) -> None:
        """Join the unquantised frames of all segments into an npz with one array `frames`, (3, T, H, W) float32."""
        parts = [np.load(self._segment_file("exact", i), mmap_mode="r") for i in range(len(self.segments))]
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

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._opened and not self.segments and not self.takes:
            remove(self.folder)
        if self._lock is not None:
            if [file.name for file in self._work.glob("*")] == ["lock"]:
                remove(self._work)
            with suppress(OSError):  # not empty: it holds segments, or an earlier video
                self._work.parent.rmdir()
            os.close(self._lock)

    def _segment_file(self, kind: str, index: int) -> Path:
        """A file of a finished segment."""
        kept = self.segments[index].kept
        return self._file(kind, index, kept.take if kept else 0)

    def _file(self, kind: str, index: int, take: int) -> Path:
        """A file of a take of a segment."""
        return self.folder / (f"{kind}_{index:05d}" + (f"_{take}" if take else "") + f".{FILES[kind]}")

    def _read_state(self) -> _State:
        try:
            return _State(**self._upgraded(json.loads((self.folder / "state.json").read_text())))
        except (OSError, ValueError, LookupError, TypeError):
            return _State()

    def _upgraded(self, state: dict[str, Any]) -> dict[str, Any]:
        """Upgrade the state of version 0.1, which kept `finite`, `colours` and seconds by phase with every segment."""
        old = [segment for segment in state["clips"] if isinstance(segment["seconds"], dict)]
        for segment in old:
            seconds = segment["seconds"]
            segment["seconds"] = seconds["total"] - seconds["load"]
            segment["seconds_per_step"] = seconds["denoise"] / self._steps
        if old:
            state |= {"finite": all(segment["finite"] for segment in old), "colours": old[0].get("colours")}
        return state


def _lock(work: Path) -> int:
    """Lock a folder `.work`, which another process may hold for a moment. Returns a descriptor that holds the lock.

    Raises:
        BadInput: it cannot be written to, or another process still holds it after `LOCK_SECONDS`.
    """
    file, end = work / "lock", time.monotonic() + LOCK_SECONDS
    while True:
        try:
            work.mkdir(parents=True, exist_ok=True)
            lock = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise BadInput(f"{work.parent}: the output folder cannot be written to: {error.strerror}") from None
        if not _locked(lock, end):
            os.close(lock)
            raise BadInput(f"{work.parent}: another process is generating this video right now")
        # The other process may have removed the folder.
        if file.exists() and os.path.samestat(os.fstat(lock), file.stat()):
            return lock
        os.close(lock)


def _locked(descriptor: int, end: float) -> bool:
    """Lock an open file. False: another process still holds it at the time `end`."""
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > end:
                return False
            time.sleep(POLL_SECONDS)
