"""Joining segments into the final mp4, with the sound of the driving video."""

import heapq
import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path

import av
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.error import InvalidDataError
from av.packet import Packet
from av.video.stream import VideoStream

from wan_orchestration.files import replacing
from wan_orchestration.video.reader import open_input

# What an mp4 carries and every player plays; other sound is encoded anew.
COPIED = {"aac", "mp3"}
# Sound before the first frame that a decoder wants for warming up, in seconds.
WARM_UP = Fraction(1, 10)

log = logging.getLogger(__name__)


def concatenate(
    segments: Sequence[Path], output: Path, audio_from: Path | None = None, audio_start: float = 0.0
) -> None:
    """Joins segments of `write_segment` without encoding again, and adds the sound of `audio_from`, if it has any.

    The video starts at 0 and lasts frames / fps; the sound begins `audio_start` seconds after the first frame of
    its own video and is cut to that length. Written beside `output` and renamed. ValueError: no segments, or
    segments that differ in size, rate or encoding. BadInput: `audio_from` cannot be opened.
    """
    frames, rate = _check(segments)
    with ExitStack() as stack:
        part = stack.enter_context(replacing(output))
        source = stack.enter_context(open_input(audio_from)) if audio_from else None
        joined = stack.enter_context(av.open(str(part), "w", format="mp4", options={"movflags": "+faststart"}))
        with av.open(str(segments[0])) as first:
            video = joined.add_stream_from_template(first.streams.video[0])
        video.time_base = 1 / rate
        packets = [_video_packets(segments, video, 1 / rate)]
        if source is not None and source.streams.audio:
            packets.append(_audio_packets(source, joined, Fraction(audio_start), frames / rate))
        # The muxer waits for the stream that lags behind, so packets go to it in the order of time.
        for packet in heapq.merge(*packets, key=_time):
            joined.mux(packet)


def _check(segments: Sequence[Path]) -> tuple[int, Fraction]:
    """Frames in all, and frames a second."""
    frames, kinds = 0, {}
    for segment in segments:
        with av.open(str(segment)) as container:
            stream = container.streams.video[0]
            frames += stream.frames
            context = stream.codec_context
            kind = (context.name, context.width, context.height, stream.average_rate, context.extradata)
            kinds.setdefault(kind, segment)
    if len(kinds) != 1:
        raise ValueError(f"segments must be alike in size, rate and encoding: {[*map(str, kinds.values())]}")
    ((*_, rate, _),) = kinds
    return frames, rate


def _video_packets(segments: Sequence[Path], stream: VideoStream, tick: Fraction) -> Iterator[Packet]:
    place = 0
    for segment in segments:
        with av.open(str(segment)) as container:
            for packet in container.demux(video=0):
                if packet.size:
                    packet.stream, packet.time_base = stream, tick
                    packet.pts = packet.dts = place
                    packet.duration = 1
                    place += 1
                    yield packet


def _audio_packets(source: InputContainer, output: OutputContainer, start: Fraction, end: Fraction) -> Iterator[Packet]:
    """The packets of the first sound track from `start` in the output's stream and time, up to `end` seconds."""
    sound = source.streams.audio[0]
    zero = start
    if source.streams.video:
        video = source.streams.video[0]
        zero += Fraction((video.start_time or 0) * (video.time_base or 0))
    if sound.codec_context.codec.canonical_name in COPIED:
        stream = output.add_stream_from_template(sound)
        packets = source.demux(sound)
    else:
        stream = output.add_stream("aac", rate=48000, layout="stereo")
        packets = _transcode(source, sound, stream)
    return _placed(packets, stream, zero, end)


def _transcode(source: InputContainer, sound: AudioStream, stream: AudioStream) -> Iterator[Packet]:
    damaged = 0
    for packet in source.demux(sound):
        try:
            frames = packet.decode()
        except InvalidDataError:
            # A crack in the sound is no reason to lose the video.
            damaged += 1
            continue
        for frame in frames:
            yield from stream.encode(frame)
    yield from stream.encode(None)
    if damaged:
        log.warning("%d damaged pieces of the sound were left out", damaged)


def _placed(packets: Iterator[Packet], stream: AudioStream, zero: Fraction, end: Fraction) -> Iterator[Packet]:
    for packet in packets:
        if packet.size == 0 or packet.pts is None:
            continue
        shift = round(zero / packet.time_base)
        start = (packet.pts - shift) * packet.time_base
        if start < -WARM_UP:
            continue
        if start + (packet.duration or 0) * packet.time_base > end:
            return
        packet.stream = stream
        packet.pts = packet.dts = packet.pts - shift
        yield packet


def _time(packet: Packet) -> Fraction:
    return (packet.dts or 0) * packet.time_base
