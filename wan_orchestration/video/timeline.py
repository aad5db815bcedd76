"""When each frame of a video is shown."""

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from fractions import Fraction
from heapq import heappush, heappushpop
from itertools import pairwise
from statistics import fmean, pstdev

from wan_orchestration.video.packets import NONE, Packets

USUAL_RATES = [Fraction(n * 1000, 1001) for n in (24, 30, 48, 60, 120)] + [
    Fraction(n) for n in (5, 6, 8, 10, 12, 15, 16, 20, 24, 25, 30, 48, 50, 60, 90, 100, 120, 240)
]
# Seconds that sound may go on after the last frame without holding that frame: padding of encoders and late stops.
OVERHANG = Fraction(1, 2)
# Frames after a timestamp that goes back which tell a slip from a clock that starts anew.
AHEAD = 16


class Timeline:
    """The frames of a video in the order in which they are shown, and the moment at which each appears.

    Everything that asks for a frame, a rate, a length or a place for the sound goes by this model:

    - Frame 0 appears at 0 s, whatever the file's clock says; `start` is that moment on the file's clock, which the
      sound goes by too. Frames that an edit list hides have no place.
    - Frames come in the order of their timestamps, and are known by them. Where timestamps repeat, go back, are
      missing, or are those of decoding although frames are reordered, frames come as the decoder gives them and are
      known by counting (`counted`).
    - The n-th frame appears at the n-th timestamp. One that does not come after the one before is put between its
      neighbours. Where the clock starts anew, or jumps ahead by more than an hour (10 s in MPEG-TS and MPEG-PS), time
      goes on by one step. Where some are missing, decoding times are taken, or else even steps.
    - `rate` is one over the usual step: the step that the quickest quarter of the frames have, over pairs of steps so
      that a rhythm such as 3:2 is evened out. A longer step is a pause: the rate stays, and time goes on. Where the
      rate in the file, or one that people use, agrees within the rounding of timestamps, it is that one.
    - The last frame lasts one step. It is held where its own duration, or the stream's in the header, is over half a
      step longer, or where the sound, or the file by its header, goes on for over half a second more: then until the
      last of these ends. Sound that hangs over by less, as encoders pad it, lengthens nothing.
    """

    notice: str | None = None
    """What was mended, in words."""

    def __init__(self, packets: Packets) -> None:
        self._packets = packets
        self._tick = packets.tick
        self.counted = False
        entries = list(zip(packets.pts, packets.dts, packets.hidden, packets.starts, strict=True))
        # Behind the first keyframe may come frames that belong before it; tools that cut leave them without a time.
        leading = 0
        if packets.depth and entries and entries[0][0] != NONE:
            leading = next((place for place, entry in enumerate(entries) if entry[0] > entries[0][0]), 0)
        entries = [entry for place, entry in enumerate(entries) if entry[0] != NONE or place >= leading]
        missing = sum(entry[0] == NONE for entry in entries)
        raw = [entry[1 if missing else 0] for entry in entries]
        if NONE in raw:
            step = max(round(1 / (self._declared() * self._tick)), 1)
            first = next((stamp for stamp in raw if stamp != NONE), 0)
            raw = list(range(first, first + len(raw) * step, step))
        hidden, starts = ([entry[column] for entry in entries] for column in (2, 3))
        decoded = _as_decoded(zip(raw, hidden, starts, strict=True), 0 if missing else packets.depth)
        self._frames = [stamp for stamp, unseen in decoded if not unseen]
        self._ticks = self._mended()
        slips = sum(a >= b for a, b in pairwise(self._frames))
        if missing:
            self.count(f"{missing} of {len(raw)} timestamps are missing")
        elif slips:
            self.count(f"{slips} of {len(self)} timestamps repeat or go back")
        elif self._frames and self._is_mended():
            self.notice = "the file's clock jumps: time goes on without a gap there"
        if packets.format == "avi" and packets.depth > 0:
            # It has no display times.
            self.count()
        self.doubtful = packets.depth > 0 and not self.counted and all(a < b for a, b in pairwise(raw))
        """Whether display times go up in the order of the file, although the decoder may reorder frames."""

    @property
    def start(self) -> Fraction:
        """The moment of the first frame on the file's clock, seconds."""
        first = self._frames[0]
        if len(self) > 1 and self._ticks[1] - self._ticks[0] < self._frames[1] - first:
            # The first timestamp alone is wrong.
            first = self._frames[1] - (self._ticks[1] - self._ticks[0])
        return first * self._tick

    @property
    def stamps(self) -> list[int]:
        """Timestamps by which the decoder's frames are known, ascending unless `counted`."""
        return self._frames

    @property
    def times(self) -> list[float]:
        """Seconds from the first frame at which each appears."""
        first, (ticks, seconds) = self._ticks[0], self._tick.as_integer_ratio()
        return [(tick - first) * ticks / seconds for tick in self._ticks]

    def __len__(self) -> int:
        return len(self._frames)

    def count(self, reason: str = "") -> None:
        """Frames are to be known by counting; `reason`: the flaw that makes it so."""
        self.counted = True
        if reason:
            self.notice = f"{reason}: the frames were taken in the order of the decoder"

    def begin_with(self, stamp: int) -> None:
        """Leave out frames before the one with this timestamp: those that no keyframe stands before."""
        place = self._frames.index(stamp)
        del self._frames[:place], self._ticks[:place]

    def join_fields(self, decoded: list[int]) -> set[int]:
        """Drop second fields that come as packets of their own, where the decoder's first frames show that they do.

        `decoded`: timestamps of those, ascending. Returns the timestamps of second fields.
        """
        if len(decoded) < 2 or bisect_left(self._frames, decoded[-1]) < len(decoded) * 5 // 4:
            return set()
        steps = sorted(b - a for a, b in pairwise(decoded))
        least = steps[len(steps) // 2] * 3 // 4
        kept: list[int] = []
        for place, stamp in enumerate(self._frames):
            if not kept or stamp - self._frames[kept[-1]] > least:
                kept.append(place)
        seconds = set(self._frames) - {self._frames[place] for place in kept}
        self._frames = [self._frames[place] for place in kept]
        self._ticks = [self._ticks[place] for place in kept]
        return seconds

    def drop_last(self) -> None:
        del self._frames[-1], self._ticks[-1]

    def rate(self) -> Fraction:
        """Frames a second."""
        step, tolerance = self._usual_step()
        if not step:
            return self._declared()
        for rate in self._packets.rates:
            if abs(1 / rate - step) <= tolerance:
                return rate
        nearest = min(USUAL_RATES, key=lambda rate: abs(1 / rate - step))
        return nearest if abs(1 / nearest - step) <= tolerance else Fraction(1 / step).limit_denominator(1001)

    def hold(self, rate: Fraction) -> Fraction:
        """Seconds that the last frame stays beyond its step; `rate` is this timeline's."""
        duration, half = self.duration(rate), Fraction(1, 2) / rate
        packets = self._packets
        if self._is_mended() or packets.broken_off:
            return Fraction(0)
        own = duration
        if packets.last[0] == self._frames[-1]:
            own += packets.last[1] * self._tick - 2 * half
        if packets.stream_end is not None:
            own = max(own, packets.stream_end - self.start)
        ends = [end - self.start for end in (packets.sound_end, packets.file_end) if end is not None]
        if own > duration + half or max(ends, default=0) > duration + OVERHANG:
            return max([own, *ends]) - duration
        return Fraction(0)

    def duration(self, rate: Fraction) -> Fraction:
        """Seconds from the first frame's appearance to the end of the last one's step."""
        span = (self._ticks[-1] - self._ticks[0]) * self._tick
        even = round(span * rate) / rate
        # Timestamps are rounded to ticks, which must not cost a frame.
        span = even if abs(span - even) <= self._tick else span
        return span + 1 / rate

    def _declared(self) -> Fraction:
        return next(iter(self._packets.rates), Fraction(30))

    def _is_mended(self) -> bool:
        return self._ticks[-1] - self._ticks[0] != self._frames[-1] - self._frames[0]

    def _mended(self) -> list[int]:
        """Ascending timestamps for the frames in their order."""
        frames = self._frames
        steps = sorted(b - a for a, b in pairwise(frames) if b > a)
        step = steps[len(steps) // 4] if steps else 1
        jump = self._packets.farthest_jump / self._tick
        mended: list[int] = []
        shift, slipped = 0, 0
        for place, stamp in enumerate(frames):
            moment = stamp + shift
            if not mended:
                mended.append(moment)
                continue
            last = mended[-1]
            if moment <= last and any(later + shift > last for later in frames[place + 1 : place + 1 + AHEAD]):
                slipped += 1
                continue
            room = (slipped + 1) * step
            if moment <= last or moment - last > jump + room:
                shift += last + room - moment
                moment = last + room
            # Slips lie between the frames around them, in even steps.
            gap = min(step, (moment - last) / (slipped + 1))
            mended += [round(last + gap * (i + 1)) for i in range(slipped)]
            mended.append(moment)
            slipped = 0
        return mended

    def _usual_step(self) -> tuple[float, float]:
        """Seconds, 0 if there is none, and how far the true one may be off."""
        ticks = self._ticks
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


def _as_decoded(packets: Iterable[tuple[int, int, int]], depth: int) -> Iterator[tuple[int, int]]:
    """Timestamps and whether they are hidden, in the order in which a decoder gives the frames.

    `packets`: timestamp, hidden, keyframe. `depth`: frames that the decoder holds back.
    """
    waiting: list[tuple[int, int]] = []
    latest = NONE
    for stamp, hidden, key in packets:
        if key and stamp <= latest:
            # The clock starts anew.
            yield from sorted(waiting)
            waiting, latest = [], NONE
        latest = max(latest, stamp)
        if len(waiting) < depth:
            heappush(waiting, (stamp, hidden))
        else:
            yield heappushpop(waiting, (stamp, hidden))
    yield from sorted(waiting)
