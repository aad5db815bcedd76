"""Reading video: what a file holds, and its frames by index."""

from array import array
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Self

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from av.video.stream import VideoStream

from wan_orchestration.errors import BadInput
from wan_orchestration.video.tonemap import is_hdr, to_sdr

# The formats a job may bring. A whitelist, since FFmpeg goes by content: a playlist that is named .mp4 would
# otherwise make it open other files and addresses.
CONTAINERS = "mov,matroska"
# Frames that are decoded and dropped rather than sought over.
NEAR = 16
# libswscale's default is quicker and darkens by 1/255.
EXACT = int(Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT)


@dataclass(frozen=True)
class VideoInfo:
    """What a video file holds. Width and height are as shown, after rotation."""

    path: Path
    width: int
    height: int
    fps: Fraction
    frames: int
    duration: float
    """Seconds."""
    has_audio: bool
    start: Fraction = Fraction(0)
    """When the first frame is shown, by the container's clock, seconds: what its sound goes by too."""
    notices: tuple[str, ...] = ()
    """What was mended in reading it, in words."""


def open_input(path: Path) -> InputContainer:
    """A video or audio file opened for reading. BadInput: missing, empty, not a container that is supported."""
    path = Path(path)
    if not path.is_file():
        raise BadInput(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise BadInput(f"{path}: the file is empty (0 bytes); copy it again")
    options = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}
    try:
        return av.open(str(path.absolute()), options=options)
    except PermissionError:
        raise BadInput(f"{path}: no permission to read this file") from None
    except (FFmpegError, ValueError) as error:
        raise BadInput(
            f"{path}: not a whole mp4, mov, webm or mkv file ({_reason(error)}); "
            "if it was cut off while being copied or recorded, copy or export it again"
        ) from None


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def probe(path: Path) -> VideoInfo:
    """Reads every packet and decodes the first frame. BadInput: missing, empty, truncated, without video."""
    with FrameReader(path) as reader:
        return reader.info


class FrameReader:
    """Frames of a video by their place in presentation order, whatever their timestamps.

    Opening reads the packets once, without decoding, and keeps two integers a frame. Reading seeks to the
    keyframe before a frame and decodes on from there; reading on ahead does not seek again.
    """

    info: VideoInfo
    times: Sequence[float]
    """Presentation time of each frame in seconds, the first at 0: for choosing frames by time."""
    broken_off: str | None
    """How the file breaks off, where that was said to be ok."""

    def __init__(self, path: Path, truncated_ok: bool = False) -> None:
        """`truncated_ok`: of a file that breaks off, the frames before the break are used.

        BadInput: missing, empty, truncated, without video, first frame not decodable.
        """
        self._path = Path(path)
        self._reformatter = VideoReformatter()
        self._open()
        try:
            self.broken_off = broken_off = self._scan()
            if broken_off and not truncated_ok:
                raise BadInput(f"{self._path}: truncated: {broken_off}; copy or export it again")
            if not self._pts:
                raise BadInput(f"{self._path}: has a video stream without whole frames")
            # Scanning has read to the end.
            self._container.close()
            self._open()
            while broken_off and len(self._pts) > 1 and self._try_frame(len(self._pts) - 1) is None:
                self._pts.pop()
            first = self._to_rgb(self._frame(0))
            fps, duration = self._rate()
        except BaseException:
            self._container.close()
            raise
        self.info = VideoInfo(
            path=self._path,
            width=first.shape[1],
            height=first.shape[0],
            fps=fps,
            frames=len(self._pts),
            duration=duration,
            has_audio=bool(self._container.streams.audio),
            start=self._pts[0] * self._time_base,
        )
        self.times = [float((pts - self._pts[0]) * self._time_base) for pts in self._pts]

    def read(self, indices: Sequence[int]) -> np.ndarray:
        """(n, H, W, 3) uint8 RGB in the order asked; duplicates allowed. BadInput: a frame is damaged."""
        places = defaultdict(list)
        for place, index in enumerate(indices):
            if not 0 <= index < len(self._pts):
                raise IndexError(f"frame {index} of {self._path}, which has {len(self._pts)}")
            places[index].append(place)
        images = np.empty((len(indices), self.info.height, self.info.width, 3), np.uint8)
        for index in sorted(places):
            images[places[index]] = self._to_rgb(self._frame(index))
        return images

    def verify(self) -> None:
        """Decodes every frame. BadInput: the first that is damaged."""
        for index in range(len(self._pts)):
            self._frame(index)

    def close(self) -> None:
        self._container.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> None:
        self._container = open_input(self._path)
        stream = self._container.streams.best("video")
        # A song's cover picture is a video stream too.
        if not isinstance(stream, VideoStream) or stream.disposition & stream.disposition.attached_pic:
            kinds = " and ".join(sorted({stream.type for stream in self._container.streams}))
            self._container.close()
            raise BadInput(f"{self._path}: has no video stream, found {kinds or 'nothing'}")
        stream.thread_type = "AUTO"
        self._stream = stream
        self._time_base = stream.time_base or Fraction(1, 90000)
        self._restart()

    def _restart(self) -> None:
        self._decoded = self._container.decode(self._stream)
        self._position = -1
        self._current: VideoFrame | None = None

    def _scan(self) -> str | None:
        """Finds the timestamps of all shown frames and of all keyframes; tells how the file breaks off, if it does.

        Packets that an edit list hides are decoded but not shown; a hidden keyframe is still a place to start.
        """
        container = self._container
        shown, keys, packets, end = array("q"), array("q"), 0, Fraction(0)
        try:
            for packet in container.demux():
                if packet.size == 0 or packet.is_corrupt:
                    continue
                pts = packet.dts if packet.pts is None else packet.pts
                if pts is not None:
                    end = max(end, (pts + (packet.duration or 0)) * packet.time_base)
                if packet.stream_index != self._stream.index:
                    continue
                packets += 1
                if pts is None:
                    raise BadInput(f"{self._path}: frame {len(shown)} has no timestamp; remux the file")
                if packet.is_keyframe:
                    keys.append(pts)
                if not packet.is_discard:
                    shown.append(pts)
        except FFmpegError as error:
            raise BadInput(f"{self._path}: unreadable after frame {len(shown)} ({_reason(error)})") from None
        self._pts, self._keys = sorted(shown), sorted(keys)
        if "matroska" in container.format.name and shown:
            # Its index holds keyframes only, so the length in the header must tell.
            length = Fraction(container.duration or 0, av.time_base)
            last = end - Fraction(container.start_time or 0, av.time_base)
            if last >= length - Fraction(1, 2):
                return None
            # The last packet may be a part, which only the mp4 reader notices.
            self._pts.remove(shown[-1])
            return f"it ends at {float(last):.1f} s of {float(length):.1f} s"
        listed = len(self._stream.index_entries)
        return f"{packets} of {listed} frames are there" if packets < listed else None

    def _rate(self) -> tuple[Fraction, float]:
        """Frames a second and seconds. The rate in the file is taken unless the timestamps tell otherwise."""
        frames, span = len(self._pts), (self._pts[-1] - self._pts[0]) * self._time_base
        rate = self._stream.average_rate or self._stream.guessed_rate
        if span > 0:
            measured = (frames - 1) / span
            if not rate or abs((frames - 1) / rate - span) > span / 50 + self._time_base:
                rate = measured.limit_denominator(1001)
        rate = rate or Fraction(30)
        return rate, float(span + 1 / rate)

    def _frame(self, index: int) -> VideoFrame:
        frame = self._try_frame(index)
        if frame is None:
            raise BadInput(
                f"{self._path}: frame {index} (of {len(self._pts)}, counted from 0) cannot be decoded; "
                "the file is damaged, copy or export it again"
            )
        return frame

    def _try_frame(self, index: int) -> VideoFrame | None:
        if index == self._position and self._current is not None:
            return self._current
        starts = self._starts(index)
        if self._position < index and bisect_left(self._pts, starts[0]) <= self._position + NEAR:
            frame = self._forward(index)
            if frame is not None:
                return frame
        for start in starts:
            self._seek(start)
            frame = self._forward(index)
            if frame is not None:
                return frame
        return None

    def _starts(self, index: int) -> list[int]:
        """Timestamps to decode from, best first.

        The keyframe before a frame should do. Where keyframes depend on one another (open groups), or a seek
        lands late, the one before that does; the file's start always does.
        """
        key = bisect_right(self._keys, self._pts[index])
        return [*self._keys[max(key - 2, 0) : key][::-1], min([self._pts[0], *self._keys[:1]])]

    def _seek(self, pts: int) -> None:
        if pts <= self._pts[0]:
            self._container.close()
            self._open()
        else:
            self._container.seek(pts, stream=self._stream)
            self._restart()

    def _forward(self, index: int) -> VideoFrame | None:
        """Decodes on to a frame; None where it does not come or comes damaged."""
        try:
            for frame in self._decoded:
                place = 0 if frame.pts is None else bisect_left(self._pts, frame.pts)
                self._position = max(place, self._position + 1)
                self._current = None if frame.is_corrupt else frame
                if self._position >= index:
                    return self._current if self._position == index else None
        except FFmpegError:
            pass
        self._position, self._current = len(self._pts), None
        return None

    def _to_rgb(self, frame: VideoFrame) -> np.ndarray:
        width, height = self._stream.width, self._stream.height
        if is_hdr(frame):
            # Not rgb48: libswscale's exact path gets its green wrong.
            deep = self._reformatter.reformat(frame, width, height, "gbrp16le", interpolation=EXACT).to_ndarray()
            image = to_sdr(deep, frame.color_trc)
        else:
            image = self._reformatter.reformat(frame, width, height, "rgb24", interpolation=EXACT).to_ndarray()
        return np.rot90(image, frame.rotation // 90 % 4)


def iter_frames(path: Path) -> Iterator[np.ndarray]:
    """Every frame in order, each (H, W, 3) uint8 RGB. BadInput as for `FrameReader`."""
    with FrameReader(path) as reader:
        for index in range(reader.info.frames):
            yield reader.read([index])[0]


def pingpong(length: int, start: int, count: int) -> list[int]:
    """Places start .. start + count - 1 of the endless run 0 1 .. n-1 n-2 .. 1 0 1 .., n being `length`."""
    period = max(2 * length - 2, 1)
    return [min(place, period - place) for place in (i % period for i in range(start, start + count))]
