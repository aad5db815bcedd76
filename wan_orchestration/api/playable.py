"""Videos that browsers can play."""

import tempfile
import threading
from pathlib import Path

from wan_orchestration.video import iter_frames, probe, write_segment
from wan_orchestration.video.reader import open_input

ONE = threading.Lock()
"""Encoding takes all cores."""


def playable(path: Path, cache: Path) -> Path:
    """The video itself, or where browsers cannot play it, as the lossless RGB of ready clips, a copy that they can.

    The copy is made once, at `cache`, and anew when the video has changed. BadInput: the video cannot be decoded.
    """
    with open_input(path) as container:
        stream = container.streams.video[0]
        if stream.codec_context.pix_fmt != "gbrp":
            return path
    with ONE:
        if cache.is_file() and cache.stat().st_mtime >= path.stat().st_mtime:
            return cache
        cache.parent.mkdir(parents=True, exist_ok=True)
        # Another server of the same data folder may be at it too.
        with tempfile.TemporaryDirectory(dir=cache.parent) as folder:
            copy = Path(folder) / "copy.mp4"
            write_segment(copy, iter_frames(path), probe(path).fps)
            copy.replace(cache)
    return cache
