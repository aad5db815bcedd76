"""The sound of a video: the choice of a track, and its samples with corrected times.

A damaged track does not affect the others. `find_sound` decodes tracks until one is usable, so that a user learns
before a long generation how the sound will be used.

Times follow one rule: a track starts at its first timestamp, and each frame follows the previous one. A jump forward
is filled with silence if the next frame confirms it. A frame that overlaps previous ones is left out. Timestamps that
repeat, go back or are missing are replaced by times that are counted in samples.
"""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import chain, pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.stream import Stream

from wan_orchestration.video.info import Sound
from wan_orchestration.video.packets import farthest_jump
from wan_orchestration.video.reader import open_input

# Codecs that an mp4 can hold and every player supports. Other sound is reencoded.
COPIED = {"aac", "mp3"}
# The lowest sample rate of mp3 that an mp4 can hold, in Hz. Below it are the rates of MPEG-2.5.
MP3_RATE = 16000
# Samples per second of reencoded sound.
RATE = 48000
# Seconds by which timestamps may deviate. So small a shift between sound and picture is not noticed.
TOLERANCE = Fraction(1, 25)
# The least difference between two timestamps, in seconds.
STEP = Fraction(1, 1000)

log = logging.getLogger(__name__)


class _Kind(NamedTuple):
    """The rate, channels and sample format of sound."""

    rate: int
    channels: str
    format: str

    @classmethod
    def of(cls, frame: AudioFrame) -> "_Kind":
        return cls(frame.sample_rate, frame.layout.name, frame.format.name)


@dataclass
class _Flaws:
    """Flaws that were found while decoding a track."""

    pieces: int = 0
    """Packets of the track."""
    damaged: int = 0
    corrected: int = 0
    """Timestamps that repeat, go back or are missing."""
    jumps: int = 0
    overlaps: int = 0
    kinds: list["_Kind"] = field(default_factory=list)
    """The kinds of sound in the track, in order; more than one if the kind changes."""
    framed: bool = False
    """Whether packets have stream headers (ADTS), which an mp4 cannot hold."""
    hidden: bool = False
    """Whether an edit list hides packets after visible ones."""

    def in_words(self) -> list[str]:
        found = {
            f"{_count(self.damaged, 'piece')} damaged": self.damaged,
            f"{_count(self.corrected, 'timestamp')} corrected": self.corrected,
            f"{_count(self.jumps, 'gap')} filled with silence": self.jumps,
            f"{_count(self.overlaps, 'overlapping piece')} left out": self.overlaps,
            f"the kind of sound changes {_count(len(self.kinds) - 1, 'time')}": len(self.kinds) > 1,
        }
        return [text for text, count in found.items() if count]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def find_sound(path: Path) -> Sound:
    """The first sound track of a file that can be decoded, after decoding all of it.

    A file without sound gives silence and no notice. BadInput: the file cannot be opened.
    """
    notices: list[str] = []
    with open_input(path) as source:
        tracks = [stream.index for stream in source.streams if stream.type == "audio"]
    for number, track in enumerate(tracks, 1):
        name = f"{path.name}: the sound" if len(tracks) == 1 else f"{path.name}: sound track {number} of {len(tracks)}"
        # The file is opened again for each track, because reading one track skips the others.
        with open_input(path) as source:
            try:
                sound = _examine(name, path, source, source.streams[track])
            except Exception as error:
                log.info("%s", name, exc_info=True)
                sound = Sound(path, notices=(f"{name} cannot be read ({error})",))
        if notices and sound.track is not None:
            notices[-1] += f"; track {number} is used"
        notices += sound.notices
        if sound.track is not None:
            return Sound(path, track, sound.copied, tuple(notices))
    if notices:
        notices[-1] += "; the video is silent"
    return Sound(path, notices=tuple(notices))


def _examine(name: str, path: Path, source: InputContainer, stream: Stream) -> Sound:
    if not isinstance(stream, AudioStream) or stream.codec_context is None:
        return Sound(path, notices=(f"{name} has a codec that is not supported",))
    codec, flaws = stream.codec_context.codec.canonical_name, _Flaws()
    samples = sum(frame.samples for frame, _ in _timed(_decoded(source, stream, flaws), flaws, farthest_jump(source)))
    if not flaws.pieces:
        return Sound(path, notices=(f"{name} is empty",))
    if not samples or flaws.damaged > flaws.pieces / 2:
        return Sound(path, notices=(f"{name} cannot be decoded ({codec}, {flaws.damaged} of {flaws.pieces} damaged)",))
    described = flaws.in_words()
    copied = codec in COPIED and not (described or flaws.framed or flaws.hidden)
    if codec == "aac":
        copied = copied and bool(stream.codec_context.extradata)
    else:
        copied = copied and flaws.kinds[0].rate >= MP3_RATE
    return Sound(path, stream.index, copied, (f"{name} has flaws: {', '.join(described)}",) if described else ())


class _Stretch:
    """Converts a stretch of sound, of one kind and without gaps, to stereo at 48 kHz."""

    def __init__(self, begin: Fraction, kind: _Kind) -> None:
        self.kind = kind
        self._begin, self._samples, self._resampler = begin, 0, _resampler()

    def add(self, frame: AudioFrame | None) -> Iterator[tuple[Fraction, np.ndarray]]:
        """The converted chunks for a frame. None: the rest that the resampler holds."""
        for piece in self._resampler.resample(frame):
            if piece is not None:
                yield self._begin + Fraction(self._samples, RATE), piece.to_ndarray()
                self._samples += piece.samples


def stereo_chunks(source: InputContainer, stream: AudioStream) -> Iterator[tuple[Fraction, np.ndarray]]:
    """A track's sound as chunks (seconds on the file's clock, (2, n) float32 at 48 kHz), with corrected times."""
    stretch, end, flaws = None, None, _Flaws()
    for frame, moment in _timed(_decoded(source, stream, flaws), flaws, farthest_jump(source)):
        kind = _Kind.of(frame)
        if stretch is None or kind != stretch.kind or moment != end:
            if stretch is not None:
                yield from stretch.add(None)
            stretch = _Stretch(moment, kind)
        end = moment + Fraction(frame.samples, frame.sample_rate)
        # The resampler counts samples instead of reading timestamps.
        frame.pts = None
        yield from stretch.add(frame)
    if stretch is not None:
        yield from stretch.add(None)


def _timed(frames: Iterable[AudioFrame], flaws: _Flaws, farthest: int) -> Iterator[tuple[AudioFrame, Fraction]]:
    """Each frame with its start time, which is never before the end of the previous frame.

    A jump ahead by more than `farthest` seconds is an error of the clock, so it leaves no gap. Counts the flaws.
    """
    end, last, least, shift = None, None, STEP, Fraction(0)
    for frame, after in pairwise(chain(frames, [None])):
        assert frame is not None
        stamp, length = _stamp(frame), Fraction(frame.samples, frame.sample_rate)
        moment = end
        if moment is None:
            moment = stamp or Fraction(0)
        elif stamp is not None:
            wrong = last is not None and stamp < last + least
            # After timestamps have gone back, the next frames may follow the new clock or the old one.
            for offset in (Fraction(0), shift):
                if abs(stamp + offset - moment) <= TOLERANCE:
                    shift = offset
                    break
            else:
                if stamp + shift > moment + farthest and _confirms(after, stamp, length):
                    shift, wrong = moment - stamp, True
                elif stamp + shift > moment and _confirms(after, stamp, length):
                    moment = stamp + shift
                    flaws.jumps += 1
                elif stamp + shift < moment and last is not None and stamp > last:
                    flaws.overlaps += 1
                    last = stamp
                    continue
                else:
                    wrong = True
                    if stamp + shift < moment:
                        shift = moment - stamp
                    else:
                        # A single timestamp that is too late must not affect the next ones.
                        stamp = last
            flaws.corrected += wrong
        last = stamp if stamp is not None else last
        end, least = moment + length, min(STEP, length)
        yield frame, moment


def _confirms(after: AudioFrame | None, stamp: Fraction, length: Fraction) -> bool:
    """Whether the next frame's timestamp follows `stamp`, which jumped, after `length` seconds or more."""
    following = None if after is None else _stamp(after)
    return following is None or following - stamp > length - TOLERANCE


def _stamp(frame: AudioFrame) -> Fraction | None:
    return None if frame.pts is None or frame.time_base is None else frame.pts * frame.time_base


def _decoded(source: InputContainer, stream: AudioStream, flaws: _Flaws) -> Iterator[AudioFrame]:
    """The decoded frames of a track. Packets that cannot be decoded are counted and skipped."""
    packets, shown = source.demux(stream), False
    while True:
        try:
            packet = next(packets, None)
        except FFmpegError:
            flaws.damaged += 1
            return
        if packet is None:
            return
        if packet.size:
            shown = shown or not packet.is_discard
            flaws.hidden = flaws.hidden or (shown and packet.is_discard)
            flaws.pieces += 1
            flaws.corrected += packet.pts is None
            flaws.framed = flaws.framed or _has_header(packet, stream)
        try:
            frames = packet.decode()
        except FFmpegError:
            flaws.damaged += packet.size > 0
            continue
        for frame in frames:
            if _usable(frame, flaws):
                yield frame
            else:
                flaws.damaged += 1


def _usable(frame: AudioFrame, flaws: _Flaws) -> bool:
    """Whether a frame has samples that can be converted to stereo. The conversion is tried once for each kind."""
    kind = _Kind.of(frame)
    if not frame.samples or not kind.rate:
        return False
    if not flaws.kinds or kind != flaws.kinds[-1]:
        try:
            _resampler().resample(frame)
        except (FFmpegError, ValueError):
            return False
        flaws.kinds.append(kind)
    return True


def _resampler() -> AudioResampler:
    return AudioResampler("fltp", "stereo", RATE)


def _has_header(packet: Packet, stream: AudioStream) -> bool:
    return stream.codec_context.name == "aac" and bytes(packet)[:1] == b"\xff" and bytes(packet)[1] & 0xF0 == 0xF0
