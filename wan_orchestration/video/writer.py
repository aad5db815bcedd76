"""Encodes RGB frames as segments of the final video, or as lossless clips."""

from collections.abc import Iterable
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Literal

import av
import numpy as np
from av.container import OutputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, VideoReformatter
from av.video.stream import VideoStream

from wan_orchestration.files import replacing
from wan_orchestration.video.display import EXACT

Pixels = Literal["rgb", "yuv444", "gray"]


def write_segment(path: Path, frames: Iterable[np.ndarray], fps: Fraction | int) -> int:
    """Encodes a segment of the final video. Returns the number of frames. ValueError: no frames, or odd sizes.

    (H, W, 3) uint8 RGB frames become H.264, yuv420p in BT.709 at constant quality. The number of threads is fixed,
    so that the same frames give the same bytes on any machine. There are no B-frames, so each timestamp is the frame's
    number, and segments can be joined by counting frames.
    """
    options = {"preset": "medium", "crf": "16", "bf": "0"}
    return _encode(path, frames, fps, "libx264", "yuv420p", options)


def write_lossless(path: Path, frames: Iterable[np.ndarray], fps: Fraction | int, pixels: Pixels = "rgb") -> int:
    """Encodes a lossless mp4 clip. Returns the number of frames. ValueError: no frames.

    Frames are (H, W, 3) uint8 RGB, or (H, W) for gray. rgb and gray decode to exactly the same values. yuv444
    has half the file size or less, and decodes to values that differ by at most 2 of 255.
    """
    codec = "libx264rgb" if pixels == "rgb" else "libx264"
    pixel_format = {"rgb": "rgb24", "yuv444": "yuv444p", "gray": "gray"}[pixels]
    return _encode(path, frames, fps, codec, pixel_format, {"preset": "ultrafast", "qp": "0", "bf": "0"})


def write_small(path: Path, frames: Iterable[np.ndarray], fps: Fraction | int) -> int:
    """Encodes a small video that browsers play while they load it. Returns the number of frames.

    (H, W, 3) uint8 RGB frames become H.264, yuv420p in BT.709. ValueError: no frames, or odd sizes.
    """
    options = {"preset": "veryfast", "crf": "25", "bf": "0", "g": "30"}
    return _encode(path, frames, fps, "libx264", "yuv420p", options, {"movflags": "+faststart"})


def _encode(
    path: Path,
    frames: Iterable[np.ndarray],
    fps: Fraction | int,
    codec: str,
    pixels: str,
    options: dict[str, str],
    container_options: dict[str, str] | None = None,
) -> int:
    fps, frames = Fraction(fps), iter(frames)
    first = next(frames, None)
    if first is None:
        raise ValueError(f"no frames for {path}")
    height, width = first.shape[:2]
    if pixels == "yuv420p" and (height % 2 or width % 2):
        raise ValueError(f"{width}x{height} frames for {path}: both must be even")
    reformatter = VideoReformatter()
    with replacing(path) as part, av.open(str(part), "w", format="mp4", options=container_options or {}) as output:
        stream = output.add_stream(codec, rate=fps, options=options)
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        context = stream.codec_context
        context.thread_count = 4
        context.time_base = 1 / fps
        yuv = pixels.startswith("yuv")
        if yuv:
            context.colorspace, context.color_range = Colorspace.ITU709, ColorRange.MPEG
            context.color_primaries, context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
        elif pixels == "gray":
            context.color_range = ColorRange.JPEG
        count = 0
        for count, image in enumerate(chain([first], frames), 1):
            frame = VideoFrame.from_ndarray(np.ascontiguousarray(image), format="gray" if pixels == "gray" else "rgb24")
            if yuv:
                frame = reformatter.reformat(
                    frame,
                    format=pixels,
                    interpolation=EXACT,
                    dst_colorspace=Colorspace.ITU709,
                    dst_color_range=ColorRange.MPEG,
                )
            frame.pts, frame.time_base = count - 1, 1 / fps
            _mux(output, stream.encode(frame))
        _mux(output, stream.encode(None))
    return count


def _mux(output: OutputContainer, packets: Iterable[Packet]) -> None:
    for packet in packets:
        # The muxer takes durations from the next frame, which a single frame does not have.
        packet.duration = 1
        output.mux(packet)
