"""Reads the frames of a driving video: chooses them by time, streams them, prefetches them in a thread."""

import math
import queue
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import TypeVar

from wan_orchestration.errors import BadInput
from wan_orchestration.preprocess.estimators.base import Frame
from wan_orchestration.settings.preprocess import PreprocessSettings
from wan_orchestration.video.info import VideoInfo
from wan_orchestration.video.reader import FrameReader

MOST_FPS = 30
KEPT_BYTES = 512 * 2**20
"""Frames of a video that take at most this much memory stay decoded for the second pass."""
_EVEN_FPS = 24

T = TypeVar("T")


class DrivingVideo:
    """The chosen frames of a driving video. It can be iterated over repeatedly.

    BadInput: the video cannot be read, is too large, or gives fewer than `least` frames.
    """

    def __init__(
        self, path: Path, settings: PreprocessSettings, choose: "ChooseFrames | None" = None, least: int = 2
    ) -> None:
        """`choose` defaults to `choose_frames`."""
        self._path = path
        self._truncated_ok = settings.truncated_ok
        with FrameReader(path, truncated_ok=settings.truncated_ok) as reader:
            self.info = reader.info
            self.broken_off = reader.broken_off
            self.times = reader.times
            self.keyframes = reader.keyframes()
        self._frames: list[Frame] = []
        """All frames, if they are kept and were read once."""
        self.fps, self.indices = (choose or choose_frames)(self.times, self.info, settings)
        if len(self.indices) < least:
            end = end_of(self.info, settings)
            raise BadInput(
                f"{path}: {len(self.indices)} frames between {settings.start:g} and {end:g} s at {float(self.fps):g} "
                f"frames a second (the video has {self.info.frames} in {self.info.duration:.2f} s); "
                f"at least {least} {'is' if least == 1 else 'are'} needed"
            )

    @property
    def size(self) -> tuple[int, int]:
        """Width and height as displayed, px."""
        return self.info.width, self.info.height

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[Frame]:
        """Frames in order. A source frame that is chosen several times is decoded once."""
        if self._frames:
            yield from self._frames
            return
        width, height = self.size
        kept = [] if len(set(self.indices)) * width * height * 3 <= KEPT_BYTES else None
        with FrameReader(self._path, truncated_ok=self._truncated_ok) as reader:
            last: Frame | None = None
            for index in self.indices:
                if last is None or last.source != index:
                    last = Frame(index, self.times[index], reader.read([index])[0])
                if kept is not None:
                    kept.append(last)
                yield last
        self._frames = kept or []

    def read(self, sources: Iterable[int]) -> Iterator[Frame]:
        """Frames of the whole video by their index in it, in ascending order. Damaged frames are left out."""
        with FrameReader(self._path, truncated_ok=self._truncated_ok) as reader:
            for index in sorted(sources):
                with suppress(BadInput):
                    yield Frame(index, self.times[index], reader.read([index])[0])


ChooseFrames = Callable[[Sequence[float], VideoInfo, PreprocessSettings], tuple[Fraction, list[int]]]
"""Chooses the frames of the clips by the display times of all frames. Returns the clips' rate and the frames' indices.
"""


def choose_frames(times: Sequence[float], info: VideoInfo, settings: PreprocessSettings) -> tuple[Fraction, list[int]]:
    """The frames nearest to evenly spaced moments, see `nearest_frames` and `choose_fps`."""
    fps = choose_fps(info.fps, settings.fps)
    end = end_of(info, settings)
    return fps, nearest_frames(times, info.fps, fps, settings.start, end, settings.max_frames)


def end_of(info: VideoInfo, settings: PreprocessSettings) -> float:
    """Second of the video at which the clips end."""
    return info.duration if settings.end is None else min(settings.end, info.duration)


def choose_fps(source: Fraction, wanted: float | None) -> Fraction:
    """`wanted`, or else the source's rate if it is at most 30 (with a tolerance of 0.5).

    A higher rate is divided by the smallest whole number that makes it at most 30, which keeps the steps between
    frames even. If less than 24 would be left, the result is 30.
    """
    if wanted is not None:
        return Fraction(wanted).limit_denominator(1001)
    if source <= MOST_FPS + Fraction(1, 2):
        return source
    divided = source / math.ceil((source - Fraction(1, 2)) / MOST_FPS)
    return divided if divided >= _EVEN_FPS else Fraction(MOST_FPS)


def nearest_frames(
    times: Sequence[float], rate: Fraction, fps: Fraction, start: float, end: float, most: int | None
) -> list[int]:
    """For each moment `start + i / fps` before `end`, the frame nearest in time; of two equally near, the earlier.

    During a pause the frame before it is repeated: a frame that appears more than half a step later is not chosen.
    A step is 1 / `rate` of the source or 1 / `fps`, whichever is longer.
    """
    count = max(math.floor((end - start) * fps + 1e-6), 0)
    if most is not None:
        count = min(count, most)
    chosen, half = [], float(1 / (2 * min(rate, fps)))
    for i in range(count):
        moment = start + float(i / fps)
        after = bisect_left(times, moment)
        early = after > 0 and after < len(times) and times[after] - moment > half + 1e-4
        candidates = range(max(after - 1, 0), min(after + (not early), len(times)))
        # Rounded, because timestamps are rounded to the file's time base, and that rounding must not decide.
        chosen.append(min(candidates, key=lambda index: (round(abs(times[index] - moment), 4), index)))
    return chosen


def batched(frames: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` frames. The last may be shorter."""
    batch: list[T] = []
    for frame in frames:
        batch.append(frame)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def prefetched(items: Iterable[T], depth: int) -> Iterator[T]:
    """The same items, which another thread produces up to `depth` ahead. Raises that thread's error."""
    end = object()
    ready: queue.Queue[object] = queue.Queue(depth)
    stop = threading.Event()
    failure: list[BaseException] = []

    def put(item: object) -> None:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.1)
            except queue.Full:
                continue
            return

    def produce() -> None:
        try:
            for item in items:
                put(item)
                if stop.is_set():
                    return
        except BaseException as error:  # raised again in the consumer's thread
            failure.append(error)
        finally:
            put(end)

    thread = threading.Thread(target=produce, name="prefetch", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not end:
            yield item  # pyright: ignore[reportReturnType]
        if failure:
            raise failure[0]
    finally:
        stop.set()
        thread.join()
