"""Joining segments into the final mp4, with the sound of the driving video."""

import heapq
import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
from av.packet import Packet
from av.video.stream import VideoStream

from wan_orchestration.files import replacing
from wan_orchestration.video.reader import open_input
from wan_orchestration.video.sound import Sound, sound_packets

log = logging.getLogger(__name__)


def concatenate(
    segments: Sequence[Path], output: Path, sound: Sound | None = None, start: Fraction = Fraction(0)
) -> str | None:
    """Joins segments of `write_segment` without encoding again, and adds `sound`; says why where that is left out.

    The video starts at 0 and lasts frames / fps; the sound is taken from `start`, a moment on its file's clock in
    seconds, and is cut to that length. Written beside `output` and renamed. Sound that cannot be written after all
    does not cost the video. ValueError: no segments, or segments that differ in size, rate or encoding.
    """
    frames, rate = _check(segments)
    with replacing(output) as part:
        if sound is None or sound.track is None:
            _join(segments, part, frames, rate, None, start)
            return None
        reason = "there is none in the part that is used"
        for attempt in [sound, replace(sound, copied=False)] if sound.copied else [sound]:
            try:
                if _join(segments, part, frames, rate, attempt, start):
                    return None
                break
            except Exception as error:
                # If it was not the sound, the silent video fails as well.
                log.info("%s: the sound could not be written", sound.path, exc_info=True)
                reason = f"it could not be written ({error})"
        else:
            _join(segments, part, frames, rate, None, start)
    return f"{sound.path.name}: the sound is left out, {reason}; the video is silent"


def _join(
    segments: Sequence[Path], output: Path, frames: int, rate: Fraction, sound: Sound | None, start: Fraction
) -> bool:
    """Writes the file; tells whether it has sound."""
    with ExitStack() as stack:
        source = stack.enter_context(open_input(sound.path)) if sound else None
        joined = stack.enter_context(av.open(str(output), "w", format="mp4", options={"movflags": "+faststart"}))
        with av.open(str(segments[0])) as first:
            video = joined.add_stream_from_template(first.streams.video[0])
        video.time_base = 1 / rate
        packets = [_video_packets(segments, video, 1 / rate)]
        if sound and source and (heard := sound_packets(sound, source, joined, start, frames / rate)):
            packets.append(heard)
        # The muxer waits for the stream that lags behind, so packets go to it in the order of time.
        for packet in heapq.merge(*packets, key=_time):
            joined.mux(packet)
    return len(packets) > 1


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


def _time(packet: Packet) -> Fraction:
    return (packet.dts or 0) * packet.time_base
