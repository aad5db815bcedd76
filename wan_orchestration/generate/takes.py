"""Measures, judges and keeps the takes of segments that rank 0 receives."""

import traceback
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from wan_orchestration.engine.conditioning import to_frames
from wan_orchestration.generate.resume import KeptTake, UnfinishedVideo
from wan_orchestration.generate.segments import Kept, Plan, Segment, SegmentMaker
from wan_orchestration.preprocess.networks import Networks
from wan_orchestration.protocol.messages import FinishedSegment, Reporter, SegmentFacts, SegmentMeasures, Take
from wan_orchestration.quality.likeness import Likeness
from wan_orchestration.quality.pose import local_estimator
from wan_orchestration.quality.segment_quality import SegmentMeter, best, misses
from wan_orchestration.settings.environment import environment


class TakeKeeper:
    """Keeps the takes of a plan's segments. Use as a context manager: leaving it waits for the last one.

    A thread encodes and writes a take while the next one is generated. Without `retakes`, the thread also measures the
    segment. With `retakes`, the measures decide what is generated next, so this waits for them.
    """

    def __init__(
        self, plan: Plan, maker: SegmentMaker, unfinished: UnfinishedVideo, reporter: Reporter, networks: Networks
    ) -> None:
        self.plan, self.unfinished, self.reporter, self.stopwatch = plan, unfinished, reporter, maker.stopwatch
        self._meter = _meter(plan, maker, networks)
        self._writer = ThreadPoolExecutor(1)
        self._writing: Future[str | None] | None = None
        self._failed = False
        """Whether the generation has failed. The last segment is then written without being measured."""
        guide = unfinished.guide()
        self._before = None if guide is None else _last_frame(plan, torch.from_numpy(guide))
        """The last frame of the segment before, (H, W, 3) uint8 RGB."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._failed = error is not None
        with self.stopwatch.during("finishing"), self._writer:
            if error is None:
                self._wait()

    def receive(self, segment: Segment) -> Kept | None:
        """Keep a take. Returns what the next segments build on, or None: the segment is to be made again."""
        with self.stopwatch.during("finishing"):
            finite = bool(torch.isfinite(segment.video).all())
            exact = segment.video.cpu().numpy() if self.plan.task.save_frames else None
            frames = to_frames(segment.video)
            # The thread gets a segment without frames: it must not keep those on the device.
            segment = replace(segment, video=segment.video.new_empty(0))
            self._wait()
            if self.plan.task.settings.retakes:
                kept = self._judge(segment, frames, finite, exact)
            else:
                kept = segment.kept
                self._write(self._measure_and_finish, segment, frames, finite, exact, self._before)
                self._report(segment.index, segment.facts)
        if kept:
            self._before = _last_frame(self.plan, kept.guide)
        return kept

    def _judge(self, segment: Segment, frames: np.ndarray, finite: bool, exact: np.ndarray | None) -> Kept | None:
        """Measure a take. Finish the segment with it or an earlier one, or have it made again."""
        take, trouble = self._measured(segment, frames, finite, self._before)
        guide, colours = segment.kept.guide.numpy(), segment.kept.colours
        earlier, again = self.unfinished.takes, self.plan.task.settings.retakes - segment.take
        if trouble:
            self.reporter.log(trouble)
        if take.misses and again > 0:
            self.reporter.log(f"{self._name(segment.index)}, {take}; it is made again, at most {again} times")
            one = KeptTake(facts=segment.facts, take=take, colours=colours)
            self._write(self.unfinished.keep_take, one, frames, guide, exact)
            return None
        takes, all_facts = [*(one.take for one in earlier), take], [*(one.facts for one in earlier), segment.facts]
        chosen = best([one for one in takes if one.measures.frozen_frames is not None] or takes)
        facts = all_facts[takes.index(chosen)].model_copy(
            update={
                "seconds": sum(one.seconds for one in takes),
                "takes": [one.model_copy(update={"kept": one is chosen}) for one in takes],
            }
        )
        if chosen is take:
            self._write(self.unfinished.finish_segment, facts, frames, guide, finite, colours, exact)
            kept = segment.kept
        else:
            self.unfinished.choose_take(facts)
            chosen_guide = self.unfinished.guide()
            assert chosen_guide is not None
            kept = Kept(torch.from_numpy(chosen_guide), self.unfinished.colours)
        if len(takes) > 1 or take.misses:
            self.reporter.log(f"{self._name(segment.index)}, {take}; take {chosen.take + 1} is kept")
        self._report(segment.index, facts)
        return kept

    def _measure_and_finish(
        self, segment: Segment, frames: np.ndarray, finite: bool, exact: np.ndarray | None, before: np.ndarray | None
    ) -> str | None:
        """Measure the only take of a segment, and finish the segment. Returns a line for the log."""
        take, trouble = self._measured(segment, frames, finite, before)
        facts = segment.facts.model_copy(update={"takes": [take.model_copy(update={"kept": True})]})
        guide, colours = segment.kept.guide.numpy(), segment.kept.colours
        self.unfinished.finish_segment(facts, frames, guide, finite, colours, exact)
        return trouble or (f"{self._name(segment.index)}, {take}" if take.misses else None)

    def _measured(
        self, segment: Segment, frames: np.ndarray, finite: bool, before: np.ndarray | None
    ) -> tuple[Take, str | None]:
        """A take with its measures, and the error if they could not be taken: the segment itself is complete."""
        task = self.plan.task
        span = self.plan.spans[segment.index]
        start = span.start + span.repeated
        nothing, trouble = SegmentMeasures(finite=finite), None
        earlier = [one.kept.measures if one.kept else SegmentMeasures(finite=True) for one in self.unfinished.segments]
        try:
            measures = nothing if self._failed else self._meter.measure(frames, start, finite, before, earlier)
        except Exception:
            measures, trouble = nothing, f"{self._name(segment.index)} could not be measured\n{traceback.format_exc()}"
        take = Take(
            take=segment.take,
            seed=segment.seed,
            seconds=segment.facts.seconds,
            measures=measures,
            misses=misses(measures, task.checks, float(task.clips.driving.fps)),
        )
        return take, trouble

    def _write(self, write: Callable[..., str | None], *arguments: Any) -> None:
        self._writing = self._writer.submit(write, *arguments)

    def _wait(self) -> None:
        """Wait until the thread is done, and log what it says."""
        if self._writing and (line := self._writing.result()):
            self.reporter.log(line)
        self._writing = None

    def _report(self, index: int, facts: SegmentFacts) -> None:
        plan, number = self.plan, self._number(index)
        self.reporter.segment(
            FinishedSegment(job_id=plan.task.job_id, segment=number, segments=plan.total, **facts.model_dump())
        )

    def _name(self, index: int) -> str:
        return f"{self.plan.task.job_id}: segment {self._number(index)} of {self.plan.total}"

    def _number(self, index: int) -> int:
        """Of a segment of this pass, from 1, over all passes."""
        return self.plan.before + index + 1


def _meter(plan: Plan, maker: SegmentMaker, networks: Networks) -> SegmentMeter:
    """Measures a plan's segments. Without `retakes` it leaves the device to the generation."""
    models_root = environment().models_root
    assert models_root is not None

    def open_likeness(reference: np.ndarray) -> Likeness:
        models = maker.models
        assert models is not None  # they made the segment
        device = models.device if plan.task.settings.retakes else torch.device("cpu")
        return Likeness(models.image_encoder(), device, reference)

    return SegmentMeter(
        plan.task.clips,
        lambda: local_estimator(plan.snapshot.path, models_root, networks),
        open_likeness,
        several=plan.passes > 1,
    )


def _last_frame(plan: Plan, guide: Tensor) -> np.ndarray:
    return to_frames(plan.task.clips.shown(guide)[:, -1:])[0]
