"""Reports the progress of a task, and when it will be done."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from wan_orchestration.engine.animator import forwards_per_step
from wan_orchestration.engine.device import device_name, pick_device
from wan_orchestration.generate.estimate import Estimate
from wan_orchestration.generate.segments import Plan, SegmentMaker
from wan_orchestration.protocol.messages import Progress, Reporter
from wan_orchestration.protocol.rates import Rates, keep_rates, rates_file, read_rates
from wan_orchestration.stopwatch import Phase, Stopwatch

SHORTEST, LONGEST = 1.0, 5.0
"""Seconds between two messages without a denoising step in between. Longer tasks get fewer messages."""


class Ticker:
    """Sends progress at each denoising step, and between the steps from a separate thread.

    Args:
        job_id: of the task.
        estimate: of the run.
        stopwatch: of the launch.
        reporter: receives the progress, from this thread or the ticker's, one call at a time.
    """

    def __init__(self, job_id: str, estimate: Estimate, stopwatch: Stopwatch, reporter: Reporter) -> None:
        self.job_id, self.estimate, self.stopwatch, self.reporter = job_id, estimate, stopwatch, reporter
        self.before = 0
        """Segments of the passes before the present one."""
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._tick, name="ticker", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        if error is None:
            self.estimate.finish(self.stopwatch.read())
            self._send("finishing")

    def step(self, segment: int, take: int, done: int) -> None:
        """Report that a denoising step is done, or if `done` is 0, that a take begins.

        Takes count from 0, and so do the segments of each pass.
        """
        with self._lock:
            self.estimate.stepped(self.before + segment, done, self.stopwatch.read(), take)
            self._update()

    def _tick(self) -> None:
        while not self._over.is_set():
            with self._lock:
                self._update()
            self._over.wait(min(max(self.estimate.left / 500, SHORTEST), LONGEST))

    def _update(self) -> None:
        phase = self.stopwatch.phase
        self.estimate.update(phase, self.stopwatch.read())
        self._send(phase)

    def _send(self, phase: Phase) -> None:
        now = self.estimate
        self.reporter.progress(
            Progress(
                job_id=self.job_id,
                phase=phase,
                fraction=now.fraction,
                segment=now.segment + 1 if now.segment_begun else 0,
                segments=now.segments,
                step=now.step,
                steps=now.steps,
                take=now.take + 1,
                seconds_per_step=now.seconds_per_step,
                eta_seconds=now.left,
            )
        )


@contextmanager
def ticking(plan: Plan, maker: SegmentMaker, seconds: Mapping[Phase, float], reporter: Reporter) -> Iterator[Ticker]:
    """Report a task's progress. The rates come from earlier tasks on the same device, and are updated after the task.

    Args:
        plan: the task. `plan.first` counts the finished segments of all passes.
        maker: of rank 0.
        seconds: the stopwatch's reading at the start of the task.
        reporter: receives the progress.
    """
    settings, clips, ranks = plan.task.settings, plan.task.clips, maker.ranks
    device, dtype = pick_device(settings, ranks)
    cache, held = maker.cache_root, maker.models
    file = cache and rates_file(cache, plan.snapshot.fingerprint)
    name = f"{device_name(device)} x {ranks.size}, {dtype}"
    rates = (file and read_rates(file, name)) or Rates.guess(plan.snapshot.bytes, device.type == "cuda")
    estimate = Estimate(
        rates,
        size=clips.height * clips.width * settings.clip_len / 1e6,
        segments=plan.total,
        first=plan.first,
        steps=settings.sampling_steps,
        forwards=forwards_per_step(settings, ranks.size),
        loads=held is None or not held.of(plan.snapshot) or (held.device, held.dtype) != (device, dtype),
        seconds=seconds,
    )
    with Ticker(plan.task.job_id, estimate, maker.stopwatch, reporter) as ticker:
        yield ticker
    if file:
        keep_rates(file, name, estimate.rates)
