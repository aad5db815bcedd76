"""Deinterlaces frames."""

from collections import deque
from collections.abc import Iterable, Iterator

from av.error import BlockingIOError as NotYet
from av.error import EOFError as Ended
from av.filter import Graph
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

# A stream's `field_order`: 0 is unknown, 1 progressive; larger values are interlaced.
PROGRESSIVE = 1


def is_interlaced(stream: VideoStream, frame: VideoFrame) -> bool:
    """Whether a stream is interlaced, according to its header or its first decoded `frame`."""
    return frame.interlaced_frame or stream.codec_context.field_order > PROGRESSIVE


def deinterlaced(frames: Iterable[VideoFrame], stream: VideoStream) -> Iterator[VideoFrame]:
    """One progressive frame for each frame, made by FFmpeg's bwdif. Progressive frames stay unchanged.

    The filter also uses a frame's neighbours, so it yields each frame only after the next one is decoded.
    """
    graph = Graph()
    graph.link_nodes(
        graph.add_buffer(template=stream),
        graph.add("bwdif", "mode=send_frame:parity=auto:deint=interlaced"),
        graph.add("buffersink"),
    ).configure()
    stamps: deque[int | None] = deque()
    for frame in frames:
        stamps.append(frame.pts)
        graph.vpush(frame)
        yield from _ready(graph, stamps)
    graph.vpush(None)
    yield from _ready(graph, stamps)


def _ready(graph: Graph, stamps: deque[int | None]) -> Iterator[VideoFrame]:
    while stamps:
        try:
            frame = graph.vpull()
        except (NotYet, Ended):
            return
        # Timestamps of the filter have another time base.
        frame.pts = stamps.popleft()
        yield frame
