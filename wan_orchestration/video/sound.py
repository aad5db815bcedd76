"""The sound of a video: which track is used, and what is heard when, mended in time.

No flaw of a track costs more than the track. `find_sound` decodes each until one can be used, so that whoever needs
the sound hours later knows before what will become of it.

One rule for time: a track begins where its first timestamp says, and each piece follows the one before it. A jump
forward that the next piece confirms is believed and filled with silence; a piece that lies where others have been
heard is left out. Timestamps that repeat, go back or are missing are passed over by counting samples.
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

# What an mp4 carries and every player plays; other sound is encoded anew.
COPIED = {"aac", "mp3"}
# The MPEG-2.5 rates of mp3 have no place in an mp4.
MP3_RATE = 16000
RATE = 48000
# By so many seconds timestamps may tremble; nobody hears sound and picture so far apart.
TREMBLE = Fraction(1, 25)
# What separates one timestamp from the next at least, in seconds.
STEP = Fraction(1, 1000)

log = logging.getLogger(__name__)


class _Kind(NamedTuple):
    """What sound is made of."""

    rate: int
    channels: str
    format: str

    @classmethod
    def of(cls, frame: AudioFrame) -> "_Kind":
        return cls(frame.sample_rate, frame.layout.name, frame.format.name)


@dataclass
class _Flaws:
    """What going through a track has brought to light."""

    pieces: int = 0
    damaged: int = 0
    mended: int = 0
    """Timestamps that repeat, go back or are missing."""
    jumps: int = 0
    overlaps: int = 0
    kinds: list["_Kind"] = field(default_factory=list)
    """One after another."""
    framed: bool = False
    """Whether packets carry the headers of a stream (ADTS), which have no place in an mp4."""
    hidden: bool = False
    """Whether an edit list hides packets after others that it shows."""

    def in_words(self) -> list[str]:
        found = {
            f"{_count(self.damaged, 'piece')} damaged": self.damaged,
            f"{_count(self.mended, 'timestamp')} mended": self.mended,
            f"{_count(self.jumps, 'gap')} filled with silence": self.jumps,
            f"{_count(self.overlaps, 'overlapping piece')} left out": self.overlaps,
            f"the kind of sound changes {_count(len(self.kinds) - 1, 'time')} on the way": len(self.kinds) > 1,
        }
        return [text for text, count in found.items() if count]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def find_sound(path: Path) -> Sound:
    """The first sound track of a file that can be decoded, after going through it. BadInput: the file cannot be opened.

    A file without sound gives silence without a notice.
    """
    notices: list[str] = []
    with open_input(path) as source:
        tracks = [stream.index for stream in source.streams if stream.type == "audio"]
    for number, track in enumerate(tracks, 1):
        name = f"{path.name}: the sound" if len(tracks) == 1 else f"{path.name}: sound track {number} of {len(tracks)}"
        # Opened for each, since going through one track passes the others by.
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
        return Sound(path, notices=(f"{name} has a codec that nothing here decodes",))
    codec, flaws = stream.codec_context.codec.canonical_name, _Flaws()
    heard = sum(frame.samples for frame, _ in _timed(_decoded(source, stream, flaws), flaws, farthest_jump(source)))
    if not flaws.pieces:
        return Sound(path, notices=(f"{name} is empty",))
    if not heard or flaws.damaged > flaws.pieces / 2:
        return Sound(path, notices=(f"{name} cannot be decoded ({codec}, {flaws.damaged} of {flaws.pieces} damaged)",))
    told = flaws.in_words()
    copied = codec in COPIED and not (told or flaws.framed or flaws.hidden)
    if codec == "aac":
        copied = copied and bool(stream.codec_context.extradata)
    else:
        copied = copied and flaws.kinds[0].rate >= MP3_RATE
    return Sound(path, stream.index, copied, (f"{name} has flaws: {', '.join(told)}",) if told else ())


class _Stretch:
    """Sound of one kind without a break, made into stereo at 48 kHz."""

    def __init__(self, begin: Fraction, kind: _Kind) -> None:
        self.kind = kind
        self._begin, self._samples, self._resampler = begin, 0, _resampler()

    def add(self, frame: AudioFrame | None) -> Iterator[tuple[Fraction, np.ndarray]]:
        """What comes out for a frame; for None, what is left."""
        for piece in self._resampler.resample(frame):
            if piece is not None:
                yield self._begin + Fraction(self._samples, RATE), piece.to_ndarray()
                self._samples += piece.samples


def pieces(source: InputContainer, stream: AudioStream) -> Iterator[tuple[Fraction, np.ndarray]]:
    """A track's sound as (moment on the file's clock, (2, n) float32 at 48 kHz), mended in time."""
    stretch, end, flaws = None, None, _Flaws()
    for frame, moment in _timed(_decoded(source, stream, flaws), flaws, farthest_jump(source)):
        kind = _Kind.of(frame)
        if stretch is None or kind != stretch.kind or moment != end:
            if stretch is not None:
                yield from stretch.add(None)
            stretch = _Stretch(moment, kind)
        end = moment + Fraction(frame.samples, frame.sample_rate)
        # Counting tells the time from here on.
        frame.pts = None
        yield from stretch.add(frame)
    if stretch is not None:
        yield from stretch.add(None)


def _timed(frames: Iterable[AudioFrame], flaws: _Flaws, farthest: int) -> Iterator[tuple[AudioFrame, Fraction]]:
    """Each frame with the moment at which it begins; none begins before the one before it has ended.

    A jump ahead by more than `farthest` seconds is one of the clock: the sound goes on without a gap.
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
            # Where timestamps went back, what follows may go by the new clock or by the old.
            for offset in (Fraction(0), shift):
                if abs(stamp + offset - moment) <= TREMBLE:
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
                        # One that strays ahead says nothing of those that follow.
                        stamp = last
            flaws.mended += wrong
        last = stamp if stamp is not None else last
        end, least = moment + length, min(STEP, length)
        yield frame, moment


def _confirms(after: AudioFrame | None, stamp: Fraction, length: Fraction) -> bool:
    """Whether the next frame follows a timestamp that jumped."""
    following = None if after is None else _stamp(after)
    return following is None or following - stamp > length - TREMBLE


def _stamp(frame: AudioFrame) -> Fraction | None:
    return None if frame.pts is None or frame.time_base is None else frame.pts * frame.time_base


def _decoded(source: InputContainer, stream: AudioStream, flaws: _Flaws) -> Iterator[AudioFrame]:
    """The frames of a track; what cannot be decoded is counted and left out."""
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
            flaws.mended += packet.pts is None
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
    """Whether a frame holds sound of a kind that can be made into stereo, which is tried once for each kind."""
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
