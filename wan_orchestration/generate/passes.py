"""The passes of a task: one for each character. A pass replaces its character's person in the video of the pass before.

The video of every pass but the last is lossless. It becomes the background of the next pass.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType
from typing import Self

from wan_orchestration.files import remove
from wan_orchestration.generate.resume import UnfinishedVideo
from wan_orchestration.jobs.clips import Clips
from wan_orchestration.protocol.messages import SegmentFacts, Task
from wan_orchestration.video.concat import concatenate
from wan_orchestration.video.reader import probe


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
        self.unfinished = UnfinishedVideo(self.task, number + 1 if task.clips.characters else 0, lossless=not last)

    def put_on(self, before: "Pass", on_segment: Callable[[], None]) -> None:
        """Make the video of the finished pass `before` the background of this one. Calls `on_segment` for each part."""
        path = self.unfinished.folder.parent / f"background_{self.number + 1}.mp4"
        concatenate(before.unfinished.files(), path, on_segment=on_segment)
        self.task = self.task.model_copy(update={"clips": self.task.clips.with_background(probe(path))})


class Passes(Sequence[Pass]):
    """All passes of a task. Leaving the context unlocks their folder."""

    def __init__(self, task: Task) -> None:
        # The background of later passes is made from the pass before, so it is none of their inputs.
        characters = [task.clips, *(one.with_background(None) for one in task.clips.characters)]
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
