"""Reads video files: facts about a file, and its frames by index."""

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Self

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from wan_orchestration.errors import BadInput
from wan_orchestration.formats import A_TEXT, A_VIDEO, VIDEO_SUFFIXES, recognise
from wan_orchestration.video.deinterlace import deinterlaced, is_interlaced
from wan_orchestration.video.display import Display, square_shape
from wan_orchestration.video.info import VideoInfo
from wan_orchestration.video.packets import BROADCAST, Packets
from wan_orchestration.video.timeline import OVERHANG, Timeline

# The formats that a job may use. FFmpeg detects formats by content: without this whitelist, a playlist named .mp4 would
# make it open other files and URLs.
CONTAINERS = "mov,matroska,avi,mpeg,mpegts,gif"
MAX_SIDE = 8192
"""px. Larger frames are refused before one is decoded."""
# For a frame at most this far ahead, the reader decodes the frames before it instead of seeking.
NEAR = 16
# Number of frames at the start that are searched for reordered ones.
ORDER_FRAMES = 60


def open_input(path: Path) -> InputContainer:
    """Opens a video or audio file for reading. BadInput: missing, empty, or not a supported container."""
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
        found, suffix = recognise(path)
        if found == A_TEXT or (suffix is not None and suffix not in VIDEO_SUFFIXES):
            raise BadInput(f"{path}: found {found}, expected {A_VIDEO}") from None
        raise BadInput(
            f"{path}: found {found} that is incomplete or of an unsupported kind ({_reason(error)}); "
            "if it was cut off while being copied or recorded, copy or export it again"
        ) from None


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def probe(path: Path) -> VideoInfo:
    """Facts about a video. Reads every packet and decodes the first frame. BadInput: as for `FrameReader`."""
    with FrameReader(path) as reader:
        return reader.info


class FrameReader:
    """Reads frames of a video by their index in display order, which `Timeline` defines.

    Opening reads the packets once, without decoding, and keeps a few integers per frame. Reading seeks to the
    keyframe before a frame and decodes from there. Reading forward does not seek again.
    """

    info: VideoInfo
    times: Sequence[float]
    """Display time of each frame, in seconds after the first frame."""
    broken_off: str | None
    """Where the file breaks off, in words; None if it is complete."""

    def __init__(self, path: Path, truncated_ok: bool = False) -> None:
        """`truncated_ok`: accepts a file that breaks off, and uses the frames before the break.

        BadInput: missing, empty, truncated, without video, too large, or the first frame cannot be decoded.
        """
        self._path = Path(path)
        self._interlaced = False
        self._open()
        try:
            self.broken_off = self._scan()
            if self.broken_off and not truncated_ok:
                raise BadInput(f"{self._path}: truncated: {self.broken_off}; copy or export it again")
            if not self._time:
                raise BadInput(f"{self._path}: has a video stream without complete frames")
            # _scan() has read to the end of the file.
            self._reopen()
            self._find_order()
            dropped = self._drop_broken_end()
            first = self._frame(0)
            self._display = Display(self._path, self._stream, first)
        except BaseException:
            self._container.close()
            raise
        width, height = self._display.size
        rate = self._time.rate()
        hold = self._time.extra_hold(rate)
        seconds = float(hold + 1 / rate)
        stays = f"the last frame stays for {seconds:.1f} s, because the file or its sound is longer (see end)"
        notices = (
            self._time.notice,
            stays if hold > OVERHANG else None,
            f"it ends within a frame: the last {dropped} frames are left out" if dropped else None,
            self._display.notice,
            "the video is interlaced: its frames were deinterlaced" if self._interlaced else None,
        )
        self.info = VideoInfo(
            path=self._path,
            width=width,
            height=height,
            fps=rate,
            frames=len(self._time),
            duration=float(self._time.duration(rate) + hold),
            has_audio=bool(self._container.streams.audio),
            start=self._time.start,
            notices=tuple(notice for notice in notices if notice),
        )
        self.times = self._time.times

    def read(self, indices: Sequence[int]) -> np.ndarray:
        """(n, H, W, 3) uint8 RGB in the requested order. Duplicates are allowed. BadInput: a frame is damaged."""
        places = defaultdict(list)
        for place, index in enumerate(indices):
            if not 0 <= index < len(self._time):
                raise IndexError(f"frame {index} of {self._path}, which has {len(self._time)}")
            places[index].append(place)
        images = np.empty((len(indices), self.info.height, self.info.width, 3), np.uint8)
        for index in sorted(places):
            images[places[index]] = self._display.rgb(self._frame(index))
        return images

    def keyframes(self) -> list[int]:
        """Indices of frames that can be decoded without the frames before them. Empty if they are unknown."""
        if self._time.counted:
            return []
        stamps = self._time.timestamps
        places = [bisect_left(stamps, key) for key in self._keys]
        return [place for place, key in zip(places, self._keys) if place < len(stamps) and stamps[place] == key]

    def verify(self) -> None:
        """Decodes every frame. BadInput: a frame is damaged."""
        for index in range(len(self._time)):
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
        # The cover picture of a sound file is a video stream too.
        if not isinstance(stream, VideoStream) or stream.disposition & stream.disposition.attached_pic:
            kinds = " and ".join(sorted({stream.type for stream in self._container.streams}))
            self._container.close()
            raise BadInput(f"{self._path}: has no video stream, found {kinds or 'nothing'}")
        width, height = square_shape(stream)
        if max(width, height) > MAX_SIDE:
            self._container.close()
            raise BadInput(
                f"{self._path}: {width}x{height} frames, at most {MAX_SIDE} px a side are accepted; export it smaller"
            )
        stream.thread_type = "AUTO"
        # Limits later frames too, which may have another size.
        stream.codec_context.options = {"max_pixels": str(MAX_SIDE**2)}
        self._stream = stream
        self._restart()

    def _reopen(self) -> None:
        self._container.close()
        self._open()

    def _restart(self) -> None:
        frames = self._container.decode(self._stream)
        self._decoded = deinterlaced(frames, self._stream) if self._interlaced else frames
        self._position = -1
        self._current: VideoFrame | None = None
        # After a seek: the timestamp of the keyframe that must be decoded first.
        self._awaited_key: int | None = None

    def _scan(self) -> str | None:
        """Reads all packets for the timeline. Returns where the file breaks off, or None if it is complete."""
        try:
            packets = Packets(self._container, self._stream)
        except FFmpegError as error:
            raise BadInput(f"{self._path}: unreadable ({_reason(error)}); copy or export it again") from None
        self._keys, self._seek_targets = sorted(packets.seek_targets), packets.seek_targets
        self._time = Timeline(packets)
        self._recorded = packets.format in BROADCAST
        if packets.broken_off and len(self._time) > 1 and packets.format != "mov":
            # The last packet may be incomplete, which FFmpeg detects only in mp4 and mov.
            self._time.drop_last()
        return packets.broken_off

    def _drop_broken_end(self) -> int:
        """Drops the undecodable last frames of a file that breaks off, or of a recording in a broadcast format.

        Returns how many frames of a recording were dropped. Recordings may end within a frame, so this is no error.
        """
        frames = len(self._time)
        while (
            (self.broken_off or (self._recorded and frames - len(self._time) < NEAR))
            and len(self._time) > 1
            and self._try_frame(len(self._time) - 1) is None
        ):
            self._time.drop_last()
        return 0 if self.broken_off else frames - len(self._time)

    def _find_order(self) -> None:
        """Decodes the first frame, and more if the timestamps may be decoding times or the video is interlaced."""
        time, first = self._time, self._next()
        if first is None:
            return
        # Decoders skip frames that depend on a keyframe before the start of the file.
        leading = bisect_right(time.timestamps, self._keys[0]) if self._keys else 0
        if not time.counted and first.pts in time.timestamps[:leading]:
            time.start_at(first.pts)
        self._interlaced = is_interlaced(self._stream, first)
        if time.may_be_decoding_times or self._interlaced:
            more = (frame.pts for frame in islice(iter(self._next, None), ORDER_FRAMES))
            decoded = [stamp for stamp in (first.pts, *more) if stamp is not None]
            if time.may_be_decoding_times and decoded != sorted(decoded):
                time.use_counting("display times are decoding times although frames are reordered")
            if self._interlaced:
                seconds = time.join_fields(sorted(decoded))
                self._keys = [key for key in self._keys if key not in seconds]
        if self._interlaced or time.may_be_decoding_times or not (time.counted or first.pts == time.timestamps[0]):
            self._reopen()
        else:
            self._position, self._current = 0, None if first.is_corrupt else first

    def _next(self) -> VideoFrame | None:
        """The decoder's next frame; None at the end or if it cannot be decoded."""
        try:
            return next(self._decoded, None)
        except FFmpegError:
            return None

    def _frame(self, index: int) -> VideoFrame:
        frame = self._try_frame(index)
        if frame is None:
            raise BadInput(
                f"{self._path}: frame {index} (of {len(self._time)}, counted from 0) cannot be decoded; "
                "the file is damaged, copy or export it again"
            )
        return frame

    def _try_frame(self, index: int) -> VideoFrame | None:
        if index == self._position and self._current is not None:
            return self._current
        starts = self._starts(index)
        ahead = self._time.counted or bisect_left(self._time.timestamps, starts[0]) <= self._position + NEAR
        if self._position < index and ahead:
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
        """Timestamps from which to decode, best first.

        Usually the keyframe before a frame is enough. If its frames depend on earlier ones (open groups of pictures),
        or if a seek lands too late, the previous keyframe is tried, then the start of the file. Counting always begins
        at the start.
        """
        timestamps = self._time.timestamps
        beginning = min([timestamps[0], *self._keys[:1]])
        if self._time.counted:
            return [beginning]
        # Deinterlacing needs the previous frame too.
        key = (bisect_left if self._interlaced else bisect_right)(self._keys, timestamps[index])
        return [*self._keys[max(key - 2, 0) : key][::-1], beginning]

    def _seek(self, pts: int) -> None:
        if pts > self._time.timestamps[0] and not self._time.counted:
            try:
                self._container.seek(self._seek_targets[pts], stream=self._stream)
            except FFmpegError:
                self._reopen()
            else:
                self._restart()
                timestamps = self._time.timestamps
                # The decoder does not return a keyframe that an edit list hides.
                self._awaited_key = pts if timestamps[bisect_left(timestamps, pts)] == pts else None
        else:
            self._reopen()

    def _forward(self, index: int) -> VideoFrame | None:
        """Decodes forward to a frame; None if it is missing or damaged."""
        counted, timestamps = self._time.counted, self._time.timestamps
        try:
            for frame in self._decoded:
                if not counted and frame.pts is not None:
                    if frame.pts < timestamps[0] or self._awaited_key not in (None, frame.pts):
                        continue
                    self._awaited_key = None
                    self._position = max(bisect_left(timestamps, frame.pts), self._position + 1)
                else:
                    self._position += 1
                self._current = None if frame.is_corrupt else frame
                if self._position >= index:
                    return self._current if self._position == index else None
            if counted and self._current is not None and index >= len(timestamps) - NEAR:
                # In old formats, packets may hold no frame; then the last frame is repeated.
                self._position = index
                return self._current
        except FFmpegError:
            pass
        self._position, self._current = len(timestamps), None
        return None


def iter_frames(path: Path) -> Iterator[np.ndarray]:
    """Every frame in order, each (H, W, 3) uint8 RGB. BadInput as for `FrameReader`."""
    with FrameReader(path) as reader:
        for index in range(reader.info.frames):
            yield reader.read([index])[0]


def pingpong(length: int, start: int, count: int) -> list[int]:
    """`count` elements from element `start` of the endless sequence 0 1 .. n-1 n-2 .. 1 0 1 .., where n is `length`."""
    period = max(2 * length - 2, 1)
    return [min(place, period - place) for place in (i % period for i in range(start, start + count))]
