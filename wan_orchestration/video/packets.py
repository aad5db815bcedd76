"""The packets of a video file, read once without decoding."""

from array import array
from fractions import Fraction

import av
from av.container import InputContainer
from av.video.stream import VideoStream

# FFmpeg's value for a missing timestamp.
NO_TIMESTAMP = -(2**63)
# Formats without an index, whose clock may jump.
BROADCAST = ("mpeg", "mpegts")
# Seconds by which a file may be shorter than its header says.
SLACK = Fraction(1, 2)
# Seconds: a longer jump ahead is a splice or a wrong timestamp, not a pause. FFmpeg has the limit of broadcast formats.
JUMP, BROADCAST_JUMP = 3600, 10


def farthest_jump(container: InputContainer) -> int:
    """The longest jump ahead in the timestamps that counts as a pause, seconds."""
    return BROADCAST_JUMP if container.format.name.split(",")[0] in BROADCAST else JUMP


class Packets:
    """A video stream's packets in file order, and the ends of the streams. The unit of timestamps is `tick` seconds."""

    def __init__(self, container: InputContainer, stream: VideoStream) -> None:
        """Reads to the end of the file. av.FFmpegError: a part of the file is unreadable."""
        self.tick = stream.time_base or Fraction(1, 90000)
        self.format: str = container.format.name.split(",")[0]
        """FFmpeg's first name for the container format: mov, matroska, avi, mpeg, mpegts or gif."""
        self.farthest_jump = farthest_jump(container)
        self.depth: int = stream.codec_context.reorder_depth
        """Number of frames that the decoder may hold back for reordering."""
        self.rates = [rate for rate in (stream.average_rate, stream.base_rate, stream.guessed_rate) if rate]
        """Frame rates according to the header."""
        self.pts = array("q")
        self.dts = array("q")
        self.hidden = bytearray()
        """1 for frames that an edit list hides: they are decoded but not displayed."""
        self.keyframes = bytearray()
        """1 for keyframes."""
        self.seek_targets: dict[int, int] = {}
        """Timestamp of each keyframe, even a hidden one -> timestamp to seek to (dts in formats without an index)."""
        self.last = NO_TIMESTAMP, 0
        """Timestamp and duration of the packet that is displayed last."""
        self.stream_end: Fraction | None = None
        """End of the video stream according to the header of mp4 and mov, in seconds on the file's clock."""
        self.sound_end: Fraction | None = None
        """End of the sound track that ends last, in seconds on the file's clock: its first timestamp plus the sum of
        durations, because a single later timestamp may be wrong."""
        self.file_end: Fraction | None = None
        """End of the file according to the header of Matroska and AVI, in seconds on the file's clock."""
        self._read(container, stream)
        self.broken_off = self._find_break(container, stream)
        """Where the file breaks off, in words; None if it is complete."""

    def __len__(self) -> int:
        return len(self.pts)

    def _read(self, container: InputContainer, stream: VideoStream) -> None:
        self._end = Fraction(0)
        sounds: dict[int, Fraction] = {}
        for packet in container.demux():
            # is_corrupt: the packet is incomplete, or (in broadcast formats) packets after it were lost.
            if packet.size == 0 or (packet.is_corrupt and self.format not in BROADCAST):
                continue
            pts, dts, duration = packet.pts, packet.dts, packet.duration or 0
            stamp = dts if pts is None else pts
            if stamp is not None:
                self._end = max(self._end, (stamp + duration) * packet.time_base)
            if packet.stream_index == stream.index:
                self.pts.append(NO_TIMESTAMP if pts is None else pts)
                self.dts.append(NO_TIMESTAMP if dts is None else dts)
                self.hidden.append(packet.is_discard)
                self.keyframes.append(packet.is_keyframe)
                if stamp is None:
                    continue
                if packet.is_keyframe:
                    self.seek_targets[stamp] = dts if self.format in BROADCAST and dts is not None else stamp
                if not packet.is_discard:
                    self.last = max(self.last, (stamp, duration))
            elif packet.stream.type == "audio" and stamp is not None:
                begin = sounds.get(packet.stream_index, stamp * packet.time_base)
                sounds[packet.stream_index] = begin + duration * packet.time_base
        self.sound_end = max(sounds.values(), default=None)
        # Fragmented mp4 files have no frame count in the header, and the header's duration may be too long.
        if self.format == "mov" and stream.frames and stream.duration:
            self.stream_end = ((stream.start_time or 0) + stream.duration) * self.tick

    def _find_break(self, container: InputContainer, stream: VideoStream) -> str | None:
        """Describes where the file breaks off; None if it is complete. Sets `file_end`."""
        if self.format == "mov":
            listed = len(stream.index_entries)
            return f"{len(self)} of {listed} frames are there" if len(self) < listed else None
        if self.format not in ("matroska", "avi"):
            return None
        # The index of these formats lists only keyframes or is at the end, so the length in the header is compared.
        # Some writers count this length from 0, others from the first timestamp.
        length = Fraction(container.duration or 0, av.time_base)
        if self.format == "avi":
            length = stream.frames * self.tick
        begin = Fraction(container.start_time or 0, av.time_base)
        self.file_end = length if length > begin else begin + length
        present = self._end - begin
        if self._end >= self.file_end - SLACK:
            return None
        return f"it ends at {float(present):.1f} s of {float(length):.1f} s"
