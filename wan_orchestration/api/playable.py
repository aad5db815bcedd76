"""Videos and pictures that browsers can show."""

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

ONE = threading.Lock()
"""Encoding takes all cores."""

CONTAINERS = {"mp4", "mov", "webm"}
CODECS = {"h264", "vp8", "vp9", "av1"}
PIXELS = {"yuv420p", "yuvj420p"}
PICTURES = {"png", "jpg", "webp", "gif", "bmp", "avif"}
LARGEST = 1280
"""px: the longer side of a copy."""


def playable(video: Path, cache: Path) -> Path:
    """The video itself, or where not all browsers can play it, a copy that they can, an mp4 without sound.

    The copy is made once, at `cache`, and anew when the video has changed. BadInput: the video cannot be decoded.
    """
    with open_input(video) as container:
        codec = container.streams.video[0].codec_context
        plays = codec.codec.canonical_name in CODECS and codec.pix_fmt in PIXELS
    if plays and recognise(video)[1] in CONTAINERS:
        return video
    return _copied(video, cache, lambda copy: write_segment(copy, _frames(video), probe(video).fps))


def visible(picture: Path, cache: Path) -> Path:
    """As `playable` for a picture; the copy is a JPEG."""
    if recognise(picture)[1] in PICTURES:
        return picture
    return _copied(picture, cache, lambda copy: write_poster(copy, _smaller(read_image(picture))))


def _copied(original: Path, cache: Path, write: Callable[[Path], object]) -> Path:
    with ONE:
        if cache.is_file() and cache.stat().st_mtime >= original.stat().st_mtime:
            return cache
        cache.parent.mkdir(parents=True, exist_ok=True)
        # Another server of the same data folder may be at it too.
        with tempfile.TemporaryDirectory(dir=cache.parent) as folder:
            copy = Path(folder) / cache.name
            write(copy)
            copy.replace(cache)
    return cache


def _frames(video: Path) -> Iterator[np.ndarray]:
    for frame in iter_frames(video):
        yield _smaller(frame)


def _smaller(image: np.ndarray) -> np.ndarray:
    """With sides that are even, as the codec has them, and no larger than a page needs."""
    height, width = image.shape[:2]
    scale = min(1, LARGEST / max(height, width))
    size = [max(2, round(side * scale) // 2 * 2) for side in (width, height)]
    return image if size == [width, height] else cv2.resize(image, size, interpolation=cv2.INTER_AREA)
