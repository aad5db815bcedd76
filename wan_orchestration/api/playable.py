"""Converts videos and pictures that browsers cannot show."""

import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np

from wan_orchestration.formats import recognise
from wan_orchestration.video.reader import iter_frames, open_input, probe
from wan_orchestration.video.stills import read_image, write_poster
from wan_orchestration.video.writer import write_segment

ENCODER_LOCK = threading.Lock()
"""One copy is encoded at a time, since encoding uses all cores."""

CONTAINERS = {"mp4", "mov", "webm"}
CODECS = {"h264", "vp8", "vp9", "av1"}
PIXELS = {"yuv420p", "yuvj420p"}
PICTURES = {"png", "jpg", "webp", "gif", "bmp", "avif"}
MAX_SIDE = 1280
"""px: longest side of a copy."""


def playable(video: Path, cache: Path) -> Path:
    """The video itself if all browsers can play it, else a copy at `cache`: an mp4 without sound.

    The copy is made again when the video has changed. BadInput: the video cannot be decoded.
    """
    with open_input(video) as container:
        codec = container.streams.video[0].codec_context
        playable_codec = codec.codec.canonical_name in CODECS and codec.pix_fmt in PIXELS
    if playable_codec and recognise(video)[1] in CONTAINERS:
        return video
    return _cached_copy(video, cache, lambda copy: write_segment(copy, _frames(video), probe(video).fps))


def viewable(picture: Path, cache: Path) -> Path:
    """The same for a picture; the copy is a JPEG."""
    if recognise(picture)[1] in PICTURES:
        return picture
    return _cached_copy(picture, cache, lambda copy: write_poster(copy, _shrink(read_image(picture))))


def _cached_copy(original: Path, cache: Path, write: Callable[[Path], object]) -> Path:
    with ENCODER_LOCK:
        if cache.is_file() and cache.stat().st_mtime >= original.stat().st_mtime:
            return cache
        cache.parent.mkdir(parents=True, exist_ok=True)
        # Another server with the same data folder may write the same copy at the same time.
        with tempfile.TemporaryDirectory(dir=cache.parent) as folder:
            copy = Path(folder) / cache.name
            write(copy)
            copy.replace(cache)
    return cache


def _frames(video: Path) -> Iterator[np.ndarray]:
    for frame in iter_frames(video):
        yield _shrink(frame)


def _shrink(image: np.ndarray) -> np.ndarray:
    """Scales an image down to MAX_SIDE; both sides become even, as the codec requires."""
    height, width = image.shape[:2]
    scale = min(1, MAX_SIDE / max(height, width))
    size = [max(2, round(side * scale) // 2 * 2) for side in (width, height)]
    return image if size == [width, height] else cv2.resize(image, size, interpolation=cv2.INTER_AREA)
