"""Joins segments into one mp4, and adds the sound of another file."""

import heapq
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from wan_orchestration.files import replacing
from wan_orchestration.video.info import Sound
from wan_orchestration.video.reader import open_input
from wan_orchestration.video.sound import RATE, stereo_chunks

# Seconds of copied sound that are kept before the first frame: decoders need it to start.
PREROLL = Fraction(1, 10)

log = logging.getLogger(__name__)


def concatenate(
    segments: Sequence[Path],
    output: Path,
    sound: Sound | None = None,
    start: Fraction = Fraction(0),
    on_segment: Callable[[], None] = lambda: None,
) -> str | None:
    """Joins video files without reencoding, and adds `sound`. Returns a notice if the sound is left out.

    The files are those of `write_segment` or `write_lossless`. The video starts at 0 and lasts frames / fps. It gets
    the sound from `start` on, in seconds on the sound file's clock, for as long as the video lasts. If the sound cannot
    be written, the video is silent. `on_segment` is called before each file. ValueError: no segments, or segments that
    differ in size, rate or encoding.
    """
    frames, rate = _check_segments(segments)
    with replacing(output) as part:
        if sound is None or sound.track is None:
            _join(segments, part, frames, rate, None, start, on_segment)
            return None
        reason = "there is none in the used part"
        for attempt in [sound, replace(sound, copied=False)] if sound.copied else [sound]:
            try:
                if _join(segments, part, frames, rate, attempt, start, on_segment):
                    return None
                break
            except Exception as error:
                # An error that the sound did not cause occurs again without the sound, and is raised there.
                log.info("%s: the sound could not be written", sound.path, exc_info=True)
                reason = f"it could not be written ({error})"
        else:
            _join(segments, part, frames, rate, None, start, on_segment)
    return f"{sound.path.name}: the sound is left out, {reason}; the video is silent"


def _join(
    segments: Sequence[Path],
    output: Path,
    frames: int,
    rate: Fraction,
    sound: Sound | None,
    start: Fraction,
    on_segment: Callable[[], None],
) -> bool:
    """Writes the file. Returns whether it has sound."""
    with ExitStack() as stack:
        source = stack.enter_context(open_input(sound.path)) if sound else None
        joined = stack.enter_context(av.open(str(output), "w", format="mp4", options={"movflags": "+faststart"}))
        with av.open(str(segments[0])) as first:
            video = joined.add_stream_from_template(first.streams.video[0])
        video.time_base = 1 / rate
        packets = [_video_packets(segments, video, 1 / rate, on_segment)]
        if sound and source and (sound_packets := _sound_packets(sound, source, joined, start, frames / rate)):
            packets.append(sound_packets)
        # In order of time: otherwise the muxer buffers one stream's packets until the other stream catches up.
        for packet in heapq.merge(*packets, key=_time):
            joined.mux(packet)
    return len(packets) > 1


def _check_segments(segments: Sequence[Path]) -> tuple[int, Fraction]:
    """The total number of frames, and frames per second. ValueError: segments differ, or there are none."""
    frames, kinds = 0, {}
    for segment in segments:
        with av.open(str(segment)) as container:
            stream = container.streams.video[0]
            frames += stream.frames
            context = stream.codec_context
            kind = (context.name, context.width, context.height, stream.average_rate, context.extradata)
            kinds.setdefault(kind, segment)
    if len(kinds) != 1:
        raise ValueError(f"segments differ in size, rate or encoding, or there are none: {[*map(str, kinds.values())]}")
    ((*_, rate, _),) = kinds
    return frames, rate


def _video_packets(
    segments: Sequence[Path], stream: VideoStream, tick: Fraction, on_segment: Callable[[], None]
) -> Iterator[Packet]:
    place = 0
    for segment in segments:
        on_segment()
        with av.open(str(segment)) as container:
            for packet in container.demux(video=0):
                if packet.size:
                    packet.stream, packet.time_base = stream, tick
                    packet.pts = packet.dts = place
                    packet.duration = 1
                    place += 1
                    yield packet


def _sound_packets(
    sound: Sound, source: InputContainer, output: OutputContainer, start: Fraction, end: Fraction
) -> Iterator[Packet] | None:
    """Adds a stream for the sound to the output. Returns the stream's packets, with timestamps of the output.

    `source` is the opened file of the sound. The packets begin at `start`, in seconds on its clock, and last until
    `end`, in seconds of the output. None: there is no sound in that span, and no stream is added.
    """
    track = source.streams[sound.track or 0]
    assert isinstance(track, AudioStream)
    if sound.copied:
        packets = _placed(source.demux(track), start, end)
        first = next(packets, None)
        if first is None:
            return None
        return _assigned(chain([first], packets), output.add_stream_from_template(track))
    cut = _cut(stereo_chunks(source, track), start, end)
    first = next(cut, None)
    if first is None:
        return None
    stream = output.add_stream("aac", rate=RATE, layout="stereo")
    return _placed(_encoded(chain([first], cut), stream), Fraction(0), end)


def _placed(packets: Iterable[Packet], start: Fraction, end: Fraction) -> Iterator[Packet]:
    for packet in packets:
        if packet.size == 0 or packet.pts is None:
            continue
        shift = round(start / packet.time_base)
        moment = (packet.pts - shift) * packet.time_base
        if moment < -PREROLL:
            continue
        if moment + (packet.duration or 0) * packet.time_base > end:
            return
        packet.pts = packet.dts = packet.pts - shift
        yield packet


def _assigned(packets: Iterable[Packet], stream: AudioStream) -> Iterator[Packet]:
    for packet in packets:
        packet.stream = stream
        yield packet


def _encoded(chunks: Iterable[tuple[int, np.ndarray]], stream: AudioStream) -> Iterator[Packet]:
    """Encodes chunks (position in samples, samples), with silence between them."""
    position = None
    for place, samples in chunks:
        position = place if position is None else position
        while position < place:
            silence = np.zeros((2, min(place - position, RATE)), np.float32)
            yield from stream.encode(_frame(silence, position))
            position += silence.shape[1]
        samples = samples[:, position - place :]
        if samples.shape[1]:
            yield from stream.encode(_frame(samples, position))
            position += samples.shape[1]
    yield from stream.encode(None)


def _frame(samples: np.ndarray, place: int) -> AudioFrame:
    frame = AudioFrame.from_ndarray(np.ascontiguousarray(samples), format="fltp", layout="stereo")
    frame.sample_rate, frame.pts, frame.time_base = RATE, place, Fraction(1, RATE)
    return frame


def _cut(
    chunks: Iterable[tuple[Fraction, np.ndarray]], start: Fraction, end: Fraction
) -> Iterator[tuple[int, np.ndarray]]:
    """The chunks between `start` and `start + end`, each with its position in samples after `start`."""
    limit = int(end * RATE)
    for moment, samples in chunks:
        place = round((moment - start) * RATE)
        if place >= limit:
            return
        samples = samples[:, max(-place, 0) : limit - place]
        if place + samples.shape[1] > 0 and samples.shape[1]:
            yield max(place, 0), samples


def _time(packet: Packet) -> Fraction:
    return (packet.dts or 0) * packet.time_base
