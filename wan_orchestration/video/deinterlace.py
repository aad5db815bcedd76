"""Whole frames from interlaced ones."""

from collections import deque
from collections.abc import Iterable, Iterator

from av.error import BlockingIOError as NotYet
from av.error import EOFError as Ended
from av.filter import Graph
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

# `field_order` of a stream: unknown and progressive are 0 and 1.
PROGRESSIVE = 1


def is_interlaced(stream: VideoStream, frame: VideoFrame) -> bool:
    """By the stream's header or its first decoded frame."""
    return frame.interlaced_frame or stream.codec_context.field_order > PROGRESSIVE


def deinterlaced(frames: Iterable[VideoFrame], stream: VideoStream) -> Iterator[VideoFrame]:
    """One whole frame for each, by FFmpeg's bwdif; progressive ones among them stay as they are.

    A frame is made from its neighbours too, so each comes when the next one is decoded.
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
        # The filter counts in ticks of its own.
        frame.pts = stamps.popleft()
        yield frame
