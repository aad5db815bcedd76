"""The passes of a task: one for each character. A pass replaces its character's person in the video of the pass before.

The video of every pass but the last is lossless. It becomes the background of the next pass, without the pixels that
the next mask covers.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from wan_orchestration.files import remove
from wan_orchestration.generate.resume import UnfinishedVideo
from wan_orchestration.jobs.clips import Clips
from wan_orchestration.protocol.messages import SegmentFacts, Task
from wan_orchestration.video.reader import FrameReader, iter_frames, probe
from wan_orchestration.video.writer import write_lossless


class Pass:
    """One pass.

    Args:
        task: the whole task.
        number: of the pass, from 0.
        clips: of the pass's character.
    """

    def __init__(self, task: Task, number: int, clips: Clips) -> None:
        last = number == len(task.clips.characters)
        changes = {"clips": clips, "save_frames": task.save_frames if last else None}
        self.number, self.task = number, task.model_copy(update=changes)
        self.unfinished = UnfinishedVideo(self.task)
        if task.clips.characters:
            self.unfinished.folder /= f"character_{number + 1}"
            self.unfinished.lossless = not last

    def put_on(self, before: "Pass") -> None:
        """Make the video of the finished pass `before` the background of this one."""
        clips = self.task.clips
        assert clips.mask is not None  # characters are replaced, see `check_clips`
        path = self.unfinished.folder.parent / f"background_{self.number + 1}.mp4"
        write_lossless(path, _cut_out(before.unfinished.files(), clips.mask.path), clips.pose.fps)
        self.task = self.task.model_copy(update={"clips": replace(clips, background=probe(path))})


class Passes(Sequence[Pass]):
    """All passes of a task. Leaving the context unlocks their folders."""

    def __init__(self, task: Task) -> None:
        # The background of later passes is made from the pass before, so it is none of their inputs.
        characters = [task.clips, *(replace(one, background=None) for one in task.clips.characters)]
        self._passes = [Pass(task, number, replace(one, characters=())) for number, one in enumerate(characters)]
        self._folder = task.output / ".work"
        self._stack = ExitStack()

    def __len__(self) -> int:
        return len(self._passes)

    def __getitem__(self, index: int) -> Pass:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self._passes[index]

    def __iter__(self) -> Iterator[Pass]:
        return iter(self._passes)

    @property
    def resumed(self) -> int:
        """Segments that an earlier run finished and this run keeps."""
        return sum(one.unfinished.resumed for one in self)

    @property
    def restarted(self) -> str | None:
        """Why finished segments were generated again; None if they were not."""
        return next((one.unfinished.restarted for one in self if one.unfinished.restarted), None)

    @property
    def finite(self) -> bool:
        return all(one.unfinished.finite for one in self)

    @property
    def segments(self) -> list[SegmentFacts]:
        """The finished segments of all passes, in order."""
        return [
            segment.model_copy(update={"character": one.number + 1}) if len(self) > 1 else segment
            for one in self
            for segment in one.unfinished.segments
        ]

    def discard(self) -> None:
        """Remove all segments. Call it once the video and its result are complete."""
        remove(self._folder)

    def __enter__(self) -> Self:
        for one in self:
            self._stack.enter_context(one.unfinished)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)
        if len(self) > 1:
            for folder in (self._folder, self._folder.parent):
                with suppress(OSError):  # not empty, or never made
                    folder.rmdir()


def _cut_out(segments: Sequence[Path], mask: Path) -> Iterator[np.ndarray]:
    """Frames (H, W, 3) uint8 of the segments, black where the mask is white."""
    with FrameReader(mask) as masks:
        frames = (frame for segment in segments for frame in iter_frames(segment))
        for index, frame in enumerate(frames):
            yield frame * (masks.read([index])[0] <= 127)
