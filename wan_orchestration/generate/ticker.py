"""Tells a reporter how far a task is."""

import threading
from types import TracebackType
from typing import Self

from wan_orchestration.generate.estimate import Estimate
from wan_orchestration.protocol.messages import Progress, Reporter
from wan_orchestration.stopwatch import Phase, Stopwatch

SHORTEST, LONGEST = 1.0, 5.0
"""Seconds between two messages where no step is done: more in long tasks, of which less is done in a second."""


class Ticker:
    """Sends progress at each step, and by a thread of its own while nothing is heard of one.

    Args:
        job_id: of the task.
        estimate: of the run.
        stopwatch: of the launch.
        reporter: is called from the thread too, once at a time.
    """

    def __init__(self, job_id: str, estimate: Estimate, stopwatch: Stopwatch, reporter: Reporter) -> None:
        self.job_id, self.estimate, self.stopwatch, self.reporter = job_id, estimate, stopwatch, reporter
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

    def step(self, segment: int, done: int) -> None:
        """A step of a segment was done, or with 0 the segment is begun; segments count from 0."""
        with self._lock:
            self.estimate.stepped(segment, done, self.stopwatch.read())
            self._look()

    def _tick(self) -> None:
        while not self._over.is_set():
            with self._lock:
                self._look()
            self._over.wait(min(max(self.estimate.left / 500, SHORTEST), LONGEST))

    def _look(self) -> None:
        phase = self.stopwatch.phase
        self.estimate.look(phase, self.stopwatch.read())
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
                seconds_per_step=now.seconds_per_step,
                eta_seconds=now.left,
            )
        )
