"""The timeline of a video: when each frame is displayed."""

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from fractions import Fraction
from heapq import heappush, heappushpop
from itertools import pairwise
from statistics import fmean, pstdev

from wan_orchestration.video.packets import NO_TIMESTAMP, Packets

USUAL_RATES = [Fraction(n * 1000, 1001) for n in (24, 30, 48, 60, 120)] + [
    Fraction(n) for n in (5, 6, 8, 10, 12, 15, 16, 20, 24, 25, 30, 48, 50, 60, 90, 100, 120, 240)
]
# Seconds by which sound may be longer than the frames without lengthening the last frame: encoders pad it.
OVERHANG = Fraction(1, 2)
# Frames to look ahead when a timestamp goes back: they show whether it alone is wrong, or the clock restarted.
LOOKAHEAD = 16


class Timeline:
    """The frames of a video in display order, and the time at which each is displayed.

    Frame numbers, the rate, the duration and the position of the sound all follow these rules:

    - Frame 0 is displayed at 0 s. `start` is that moment on the file's clock, which is the sound's too. Frames that an
      edit list hides are not counted.
    - Frames are ordered and identified by their timestamps. If timestamps repeat, go back or are missing, or if they
      are decoding times although frames are reordered, frames have the decoder's order and are identified by counting
      (`counted`).
    - The nth frame is displayed at the nth timestamp. A timestamp that does not increase is replaced by one between
      its neighbours. If the clock restarts, or jumps ahead by more than an hour (10 s in MPEG-TS and MPEG-PS), the
      next frame follows after one step. If timestamps are missing, decoding times are used, or else even steps.
    - `rate` is one divided by the usual step, which is the mean of the steps near the first quartile. Steps are
      measured in pairs, to average rhythms such as 3:2. A longer step is a pause, which does not change the rate.
      If the file's rate or a common rate agrees within the rounding of timestamps, that rate is used.
    - The last frame lasts one step. It lasts longer if its duration, or the stream's in the header, is over half a
      step longer, or if the sound, or the file according to its header, is over half a second longer. Then it lasts
      until the last of these ends. Sound that is less than half a second longer does not count: encoders pad it.
    """

    notice: str | None = None
    """The flaw that was corrected, in words."""

    def __init__(self, packets: Packets) -> None:
        self._packets = packets
        self._tick = packets.tick
        self.counted = False
        entries = list(zip(packets.pts, packets.dts, packets.hidden, packets.keyframes, strict=True))
        # Frames displayed before the first keyframe may follow it in the file. Cutting tools leave them without
        # timestamps.
        leading = 0
        if packets.depth and entries and entries[0][0] != NO_TIMESTAMP:
            leading = next((index for index, entry in enumerate(entries) if entry[0] > entries[0][0]), 0)
        entries = [entry for index, entry in enumerate(entries) if entry[0] != NO_TIMESTAMP or index >= leading]
        missing = sum(entry[0] == NO_TIMESTAMP for entry in entries)
        raw = [entry[1 if missing else 0] for entry in entries]
        if NO_TIMESTAMP in raw:
            step = max(round(1 / (self._declared_rate() * self._tick)), 1)
            first = next((timestamp for timestamp in raw if timestamp != NO_TIMESTAMP), 0)
            raw = list(range(first, first + len(raw) * step, step))
        hidden, keyframes = ([entry[column] for entry in entries] for column in (2, 3))
        decoded = _in_decoder_order(zip(raw, hidden, keyframes, strict=True), 0 if missing else packets.depth)
        self._timestamps = [timestamp for timestamp, unseen in decoded if not unseen]
        self._display_ticks = self._corrected_ticks()
        wrong = sum(a >= b for a, b in pairwise(self._timestamps))
        if missing:
            self.use_counting(f"{missing} of {len(raw)} timestamps are missing")
        elif wrong:
            self.use_counting(f"{wrong} of {len(self)} timestamps repeat or go back")
        elif self._timestamps and self._is_corrected():
            self.notice = "the file's clock jumps: the jumps were removed"
        if packets.format == "avi" and packets.depth > 0:
            # AVI has no display times.
            self.use_counting()
        self.may_be_decoding_times = packets.depth > 0 and not self.counted and all(a < b for a, b in pairwise(raw))
        """Whether timestamps increase in file order although the decoder may reorder frames."""

    @property
    def start(self) -> Fraction:
        """The moment of the first frame on the file's clock, seconds."""
        first = self._timestamps[0]
        if len(self) > 1 and self._display_ticks[1] - self._display_ticks[0] < self._timestamps[1] - first:
            # Only the first timestamp is wrong.
            first = self._timestamps[1] - (self._display_ticks[1] - self._display_ticks[0])
        return first * self._tick

    @property
    def timestamps(self) -> list[int]:
        """Timestamps that identify the decoder's frames; ascending unless `counted`."""
        return self._timestamps

    @property
    def times(self) -> list[float]:
        """Display time of each frame, in seconds after the first frame."""
        first, (ticks, seconds) = self._display_ticks[0], self._tick.as_integer_ratio()
        return [(tick - first) * ticks / seconds for tick in self._display_ticks]

    def __len__(self) -> int:
        return len(self._timestamps)

    def use_counting(self, reason: str = "") -> None:
        """Switches to identifying frames by counting. `reason`: the flaw of the timestamps."""
        self.counted = True
        if reason:
            self.notice = f"{reason}: the frames have the decoder's order"

    def start_at(self, timestamp: int) -> None:
        """Drops the frames before this timestamp: they have no keyframe before them."""
        index = self._timestamps.index(timestamp)
        del self._timestamps[:index], self._display_ticks[:index]

    def join_fields(self, decoded: list[int]) -> set[int]:
        """Drops the second field of each frame if the two fields are separate packets.

        `decoded`: ascending timestamps of the decoder's first frames, which show whether that is so. Returns the
        timestamps of the dropped fields.
        """
        if len(decoded) < 2 or bisect_left(self._timestamps, decoded[-1]) < len(decoded) * 5 // 4:
            return set()
        steps = sorted(b - a for a, b in pairwise(decoded))
        least = steps[len(steps) // 2] * 3 // 4
        kept: list[int] = []
        for index, timestamp in enumerate(self._timestamps):
            if not kept or timestamp - self._timestamps[kept[-1]] > least:
                kept.append(index)
        seconds = set(self._timestamps) - {self._timestamps[index] for index in kept}
        self._timestamps = [self._timestamps[index] for index in kept]
        self._display_ticks = [self._display_ticks[index] for index in kept]
        return seconds

    def drop_last(self) -> None:
        del self._timestamps[-1], self._display_ticks[-1]

    def rate(self) -> Fraction:
        """Frames per second."""
        step, tolerance = self._usual_step()
        if not step:
            return self._declared_rate()
        for rate in self._packets.rates:
            if abs(1 / rate - step) <= tolerance:
                return rate
        nearest = min(USUAL_RATES, key=lambda rate: abs(1 / rate - step))
        return nearest if abs(1 / nearest - step) <= tolerance else Fraction(1 / step).limit_denominator(1001)

    def extra_hold(self, rate: Fraction) -> Fraction:
        """Seconds that the last frame lasts beyond one step. `rate` is this timeline's."""
        duration, half = self.duration(rate), Fraction(1, 2) / rate
        packets = self._packets
        if self._is_corrected() or packets.broken_off:
            return Fraction(0)
        own = duration
        if packets.last[0] == self._timestamps[-1]:
            own += packets.last[1] * self._tick - 2 * half
        if packets.stream_end is not None:
            own = max(own, packets.stream_end - self.start)
        ends = [end - self.start for end in (packets.sound_end, packets.file_end) if end is not None]
        if own > duration + half or max(ends, default=0) > duration + OVERHANG:
            return max([own, *ends]) - duration
        return Fraction(0)

    def duration(self, rate: Fraction) -> Fraction:
        """Seconds from the start of the first frame to one step after the start of the last."""
        span = (self._display_ticks[-1] - self._display_ticks[0]) * self._tick
        even = round(span * rate) / rate
        # Otherwise the rounding of timestamps could make the video a frame shorter.
        span = even if abs(span - even) <= self._tick else span
        return span + 1 / rate

    def _declared_rate(self) -> Fraction:
        return next(iter(self._packets.rates), Fraction(30))

    def _is_corrected(self) -> bool:
        return self._display_ticks[-1] - self._display_ticks[0] != self._timestamps[-1] - self._timestamps[0]

    def _corrected_ticks(self) -> list[int]:
        """Ascending timestamps for the frames in their order."""
        frames = self._timestamps
        steps = sorted(b - a for a, b in pairwise(frames) if b > a)
        step = steps[len(steps) // 4] if steps else 1
        jump = self._packets.farthest_jump / self._tick
        corrected: list[int] = []
        shift, skipped = 0, 0
        for index, timestamp in enumerate(frames):
            moment = timestamp + shift
            if not corrected:
                corrected.append(moment)
                continue
            last = corrected[-1]
            if moment <= last and any(later + shift > last for later in frames[index + 1 : index + 1 + LOOKAHEAD]):
                skipped += 1
                continue
            room = (skipped + 1) * step
            if moment <= last or moment - last > jump + room:
                shift += last + room - moment
                moment = last + room
            # Frames with wrong timestamps get even steps between the frames around them.
            gap = min(step, (moment - last) / (skipped + 1))
            corrected += [round(last + gap * (i + 1)) for i in range(skipped)]
            corrected.append(moment)
            skipped = 0
        return corrected

    def _usual_step(self) -> tuple[float, float]:
        """The usual step in seconds (0: there is none), and by how much it may be wrong."""
        ticks = self._display_ticks
        pairs = [(b - a) / 2 for a, b in zip(ticks, ticks[2:], strict=False)] or [b - a for a, b in pairwise(ticks)]
        if not pairs:
            return 0, 0
        pairs.sort()
        usual = pairs[len(pairs) // 4]
        near = pairs
        for _ in range(5):
            reach = max(usual / 10, 1.5)
            near = pairs[bisect_left(pairs, usual - reach) : bisect_left(pairs, usual + reach)]
            usual = fmean(near)
        tolerance = (2 + 2 * pstdev(near) * len(near) ** 0.5) / len(near)
        return float(usual * self._tick), float(tolerance * self._tick)


def _in_decoder_order(packets: Iterable[tuple[int, int, int]], depth: int) -> Iterator[tuple[int, int]]:
    """Each frame's timestamp, and whether the frame is hidden, in the decoder's output order.

    `packets`: timestamp, hidden, keyframe, in file order. `depth`: number of frames that the decoder holds back.
    """
    waiting: list[tuple[int, int]] = []
    latest = NO_TIMESTAMP
    for timestamp, hidden, key in packets:
        if key and timestamp <= latest:
            # The clock restarts.
            yield from sorted(waiting)
            waiting, latest = [], NO_TIMESTAMP
        latest = max(latest, timestamp)
        if len(waiting) < depth:
            heappush(waiting, (timestamp, hidden))
        else:
            yield heappushpop(waiting, (timestamp, hidden))
    yield from sorted(waiting)
