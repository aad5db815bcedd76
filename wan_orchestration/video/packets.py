"""What the packets of a video file say, read once without decoding."""

from array import array
from fractions import Fraction

import av
from av.container import InputContainer
from av.video.stream import VideoStream

# No timestamp, as in FFmpeg.
NONE = -(2**63)
# Formats without an index, whose clock may jump.
BROADCAST = ("mpeg", "mpegts")
# Seconds that a file may be shorter than its header says.
SLACK = Fraction(1, 2)
# Seconds after which a jump ahead is a splice or a wrong timestamp and not a pause; in broadcast formats as in FFmpeg.
JUMP, BROADCAST_JUMP = 3600, 10


def farthest_jump(container: InputContainer) -> int:
    """Seconds by which timestamps may jump ahead and be believed."""
    return BROADCAST_JUMP if container.format.name.split(",")[0] in BROADCAST else JUMP


class Packets:
    """A video stream's packets in the order of the file, and where the streams end. Timestamps in `tick` seconds."""

    def __init__(self, container: InputContainer, stream: VideoStream) -> None:
        """Reads to the end of the file. av.FFmpegError: unreadable; what came before is there."""
        self.tick = stream.time_base or Fraction(1, 90000)
        self.format: str = container.format.name.split(",")[0]
        """FFmpeg's first name: mov, matroska, avi, mpeg, mpegts or gif."""
        self.farthest_jump = farthest_jump(container)
        self.depth: int = stream.codec_context.reorder_depth
        """Frames that the decoder may hold back to reorder."""
        self.rates = [rate for rate in (stream.average_rate, stream.base_rate, stream.guessed_rate) if rate]
        """Frames a second by the header."""
        self.pts = array("q")
        self.dts = array("q")
        self.hidden = bytearray()
        """1 where an edit list hides the frame: decoded but not shown."""
        self.starts = bytearray()
        """1 for keyframes."""
        self.keys: dict[int, int] = {}
        """Timestamps of keyframes, hidden ones too, and where to seek for each: formats without an index go by dts."""
        self.last = NONE, 0
        """Timestamp and duration of the packet that is shown last."""
        self.stream_end: Fraction | None = None
        """End of the video stream by the header, seconds on the file's clock."""
        self.sound_end: Fraction | None = None
        """End of the longest sound track, the same way; by its durations, since one wrong timestamp may tell a lie."""
        self.file_end: Fraction | None = None
        """End of the file by the header, the same way."""
        self._read(container, stream)
        self.broken_off = self._find_break(container, stream)

    def __len__(self) -> int:
        return len(self.pts)

    def _read(self, container: InputContainer, stream: VideoStream) -> None:
        self._end = Fraction(0)
        sounds: dict[int, Fraction] = {}
        for packet in container.demux():
            # Elsewhere a packet that is only partly there; in a broadcast one after which others were lost.
            if packet.size == 0 or (packet.is_corrupt and self.format not in BROADCAST):
                continue
            pts, dts, duration = packet.pts, packet.dts, packet.duration or 0
            stamp = dts if pts is None else pts
            if stamp is not None:
                self._end = max(self._end, (stamp + duration) * packet.time_base)
            if packet.stream_index == stream.index:
                self.pts.append(NONE if pts is None else pts)
                self.dts.append(NONE if dts is None else dts)
                self.hidden.append(packet.is_discard)
                self.starts.append(packet.is_keyframe)
                if stamp is None:
                    continue
                if packet.is_keyframe:
                    self.keys[stamp] = dts if self.format in BROADCAST and dts is not None else stamp
                if not packet.is_discard:
                    self.last = max(self.last, (stamp, duration))
            elif packet.stream.type == "audio" and stamp is not None:
                begin = sounds.get(packet.stream_index, stamp * packet.time_base)
                sounds[packet.stream_index] = begin + duration * packet.time_base
        self.sound_end = max(sounds.values(), default=None)
        # A fragmented mp4, which counts no frames in its header, may promise more than it holds.
        if self.format == "mov" and stream.frames and stream.duration:
            self.stream_end = ((stream.start_time or 0) + stream.duration) * self.tick

    def _find_break(self, container: InputContainer, stream: VideoStream) -> str | None:
        """How the file breaks off, if it does."""
        if self.format == "mov":
            listed = len(stream.index_entries)
            return f"{len(self)} of {listed} frames are there" if len(self) < listed else None
        if self.format not in ("matroska", "avi"):
            return None
        # The index of these holds keyframes only or comes last, so the length in the header must tell. Some writers
        # count it from 0 and some from the first timestamp.
        length = Fraction(container.duration or 0, av.time_base)
        if self.format == "avi":
            length = stream.frames * self.tick
        begin = Fraction(container.start_time or 0, av.time_base)
        self.file_end = length if length > begin else begin + length
        there = self._end - begin
        return (
            None if self._end >= self.file_end - SLACK else f"it ends at {float(there):.1f} s of {float(length):.1f} s"
        )
