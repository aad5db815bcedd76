"""How much of a video's generation is done, and how long the rest will take."""

from collections.abc import Mapping

from wan_orchestration.protocol.rates import Rates
from wan_orchestration.stopwatch import PHASES, Phase, since

STAGES: dict[Phase, int] = {
    "loading": 0,
    "encoding": 0,
    "compiling": 1,
    "denoising": 1,
    "decoding": 2,
    "finishing": 3,
}
"""The order of a segment's phases. When a phase of a later stage begins, those of earlier stages are over."""
OVERDUE = 0.2
"""An overdue phase is expected to take this share of its elapsed time in addition."""
LEAST = 0.1
"""Fewest seconds that the current phase is expected to take from now."""
SLOWLY = 0.1
"""The fraction slows to this share of its speed once it passes the end of the current phase or denoising step."""


class Estimate:
    """Estimates one run of a task from the readings of its stopwatch.

    The fraction grows at the speed that takes it to 1 in the expected seconds. Once it passes the end of the current
    phase or denoising step, it grows slowly. It always grows, even if the rates are wrong.

    Args:
        rates: of earlier tasks.
        size: of a segment, in millions of pixels over all its frames.
        segments: of the whole video.
        first: number of segments that an earlier run finished.
        steps: denoising steps of a segment.
        forwards: of the transformer in a denoising step, on this device.
        loads: whether the weights must be loaded.
        seconds: the stopwatch's reading at the start.
    """

    def __init__(
        self,
        rates: Rates,
        size: float,
        segments: int,
        first: int,
        steps: int,
        forwards: int,
        loads: bool,
        seconds: Mapping[Phase, float],
    ) -> None:
        self.rates, self.size, self.segments, self.steps, self.forwards = rates, size, segments, steps, forwards
        self.loads = loads
        self.segment, self.step = min(first, segments - 1), 0
        """The current segment, from 0, and the denoising steps of it that are done."""
        self.take = 0
        """The take of the current segment, from 0."""
        self.segment_begun = False
        """False until the weights are loaded, and the prompt and the picture are encoded."""
        self.seconds_per_step: float | None = None
        """Of this run; None before its first denoising step is done."""
        self._first = first
        self._again = False
        """Whether this run has made another take of the current segment, and so encoded its inputs."""
        self._steps_done = 0
        self._before = self._segment_before = self._last = dict(seconds)
        self._step_before = seconds["denoising"]
        self.left = self._whole - first * self._segment_seconds
        """Expected seconds until the video is done."""
        self.fraction = 1 - self.left / self._whole

    def stepped(self, segment: int, step: int, seconds: Mapping[Phase, float], take: int = 0) -> None:
        """Record that a denoising step is done, or that a take of the segment begins if `step` is 0."""
        if step == 0:
            again = self.segment_begun and segment == self.segment and take > self.take
            if segment > self.segment or again:
                self._learn(seconds)
            self._again = again
            # Loading and encoding before the first segment count for it, unless the denoising is a retry.
            if segment > self._first or seconds["denoising"] > self._before["denoising"]:
                self._segment_before = dict(seconds)
        else:
            self._steps_done += 1
            self.seconds_per_step = (seconds["denoising"] - self._before["denoising"]) / self._steps_done
        self.segment, self.take, self.step, self.segment_begun = segment, take, step, True
        self._step_before = seconds["denoising"]

    def update(self, phase: Phase, seconds: Mapping[Phase, float]) -> None:
        """Bring `fraction` and `left` up to date."""
        passed = sum(seconds.values()) - sum(self._last.values())
        self._last = dict(seconds)
        self.left, after = self._left(phase, seconds)
        grown = self.fraction + (1 - self.fraction) * passed / (passed + self.left)
        slow = grown > 1 - after / self._whole
        self.fraction += (grown - self.fraction) * (SLOWLY if slow else 1)

    def finish(self, seconds: Mapping[Phase, float]) -> None:
        """Record that the video is complete."""
        self._learn(seconds)
        took = seconds["finishing"] - self._before["finishing"]
        self.rates = self.rates.model_copy(update={"finishing": max(took, 1e-6) / (self.size * self.segments)})
        self.fraction, self.left = 1.0, 0.0

    @property
    def _step_seconds(self) -> float:
        return self.seconds_per_step or self.rates.denoising * self.size * self.forwards

    @property
    def _segment_seconds(self) -> float:
        return (self.rates.encoding + self.rates.decoding) * self.size + self.steps * self._step_seconds

    @property
    def _finishing(self) -> float:
        return self.rates.finishing * self.size * self.segments

    @property
    def _whole(self) -> float:
        """Expected seconds of the whole video, including the part of an earlier run."""
        once = self.rates.once if self.loads else 0.0
        return once + self.segments * self._segment_seconds + self._finishing

    def _left(self, phase: Phase, seconds: Mapping[Phase, float]) -> tuple[float, float]:
        """Seconds from now to the end, and from the end of the current phase or denoising step to the end."""
        spent = since(seconds, self._segment_before)
        # Finishing may be that of the pass before.
        stage = max(STAGES[one] for one in PHASES if (spent[one] > 0 and one != "finishing") or one == phase)
        last = self.segment == self.segments - 1
        loads = self.loads and self.segment == self._first and not self._again
        expected: dict[Phase, float] = {
            "loading": self.rates.loading if loads else 0.0,
            "encoding": 0.0 if self._again else self.rates.encoding * self.size,
            "compiling": self.rates.compiling if loads else 0.0,
            "denoising": (self.steps - self.step) * self._step_seconds,
            "decoding": self.rates.decoding * self.size,
            "finishing": self._finishing if last else 0.0,
        }
        spent["denoising"] = seconds["denoising"] - self._step_before
        rests = {one: expected[one] - spent[one] for one in PHASES}
        after = sum(max(rests[one], 0.0) for one in PHASES if STAGES[one] >= stage and one != phase)
        now = max(rests[phase] if rests[phase] > 0 else OVERDUE * spent[phase], LEAST)
        later = 0 if last else self.segments - self.segment - 1
        after += 0.0 if last else later * self._segment_seconds + self._finishing
        # A phase that takes longer than expected in this segment will take longer in the next ones too.
        longer = later * sum(max(-rests[one], 0.0) for one in ("encoding", "decoding"))
        if phase == "denoising":
            return after + now + longer, after + max(self.steps - self.step - 1, 0) * self._step_seconds
        return after + now + longer, after

    def _learn(self, seconds: Mapping[Phase, float]) -> None:
        """Learn the rates from the current segment, which is done."""
        spent = since(seconds, self._segment_before)
        phases: tuple[Phase, ...] = ("decoding",) if self._again else ("encoding", "decoding")
        learnt: dict[str, float] = {one: spent[one] / self.size for one in phases if spent[one] > 0}
        if self.seconds_per_step:
            learnt["denoising"] = self.seconds_per_step / self.size / self.forwards
        if self.loads and self.segment == self._first and not self._again:
            learnt |= {"loading": spent["loading"], "compiling": spent["compiling"]}
        self.rates = self.rates.model_copy(update=learnt)
