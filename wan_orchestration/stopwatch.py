"""Measures how long each phase of a launch takes."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal, get_args

Phase = Literal["loading", "compiling", "encoding", "denoising", "decoding", "finishing"]
PHASES: tuple[Phase, ...] = get_args(Phase)


class Stopwatch:
    """Counts seconds by phase. An inner phase pauses the outer one, so the phases add up to the total time.

    Outside of `during`, the phase is encoding, because inputs are found and read then. One thread changes phases; any
    thread may read.

    Args:
        synchronize: waits for the device, so that its work counts in the phase that started it.
    """

    def __init__(self, synchronize: Callable[[], None] = lambda: None) -> None:
        self.synchronize = synchronize
        self.phase: Phase = "encoding"
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._since = time.perf_counter()
        self._lock = threading.Lock()

    @contextmanager
    def during(self, phase: Phase) -> Iterator[None]:
        """Counts the time of the block as `phase`."""
        outer = self.phase
        self.synchronize()
        self._switch(phase)
        try:
            yield
            self.synchronize()
        finally:
            self._switch(outer)

    def read(self) -> dict[Phase, float]:
        """Seconds in each phase since the stopwatch was created, up to this moment."""
        with self._lock:
            return self._count()

    def _switch(self, phase: Phase) -> None:
        with self._lock:
            self._count()
            self.phase = phase

    def _count(self) -> dict[Phase, float]:
        now = time.perf_counter()
        self._seconds[self.phase] += now - self._since
        self._since = now
        return dict(self._seconds)


def since(now: Mapping[Phase, float], before: Mapping[Phase, float]) -> dict[Phase, float]:
    """Seconds in each phase between two readings."""
    return {phase: now[phase] - before[phase] for phase in PHASES}
