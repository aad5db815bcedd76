"""Small pictures: a contact sheet of clips, and animated previews of their overlay and of a video."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from wan_orchestration.files import replacing
from wan_orchestration.jobs.clips import Clips
from wan_orchestration.video.reader import FrameReader

MOST_BYTES = 37_000
"""Dagster's database stores the preview as base64, which is then less than 50 KB."""
FRAMES = 24
"""Frames of a preview."""
LONGEST_OVERLAY = 6.0
"""Seconds: the overlay of a longer video is shown in fast motion."""
SHOWN = 8
"""Frames on a contact sheet."""
SHEET_WIDTH = 1280
HEIGHT = 160
"""Height of a strip, in px."""
_TRIES = ((1.0, 60), (1.0, 35), (0.8, 30), (0.6, 30), (0.45, 25), (0.3, 20))
"""Scale and quality, tried in order until the preview is small enough. The last is written in any case."""


def contact_sheet(clips: Clips) -> np.ndarray:
    """Frames of clips side by side: pose, face and, in replace mode, background and mask; (H, W, 3) uint8 RGB.

    Raises:
        BadInput: a clip cannot be decoded.
    """
    places = np.linspace(0, clips.driving.frames - 1, min(SHOWN, clips.driving.frames)).round().astype(int)
    rows = []
    for info in clips.videos.values():
        with FrameReader(info.path) as reader:
            rows.append(reader.read([min(place, info.frames - 1) for place in places.tolist()]))
    tiles = [strip(pictures) for pictures in zip(*rows, strict=True)]
    columns = max(1, SHEET_WIDTH // tiles[0].shape[1])
    tiles += [np.zeros_like(tiles[0])] * (-len(tiles) % columns)
    return np.vstack([np.hstack(tiles[start : start + columns]) for start in range(0, len(tiles), columns)])


def strip(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Pictures (H, W, 3) uint8 RGB side by side, each `HEIGHT` px high."""
    return np.hstack([_at_height(picture, HEIGHT) for picture in pictures])


def overlay_preview(overlay: Path) -> bytes:
    """Frames of `overlay.mp4` as an animated WebP of at most `MOST_BYTES`.

    Raises:
        BadInput: the overlay cannot be decoded.
    """
    with FrameReader(overlay) as reader:
        frames = reader.info.frames
        places = np.linspace(0, frames - 1, min(FRAMES, frames)).round().astype(int)
        strips = [strip([reader.read([place])[0]]) for place in places.tolist()]
        return _animated(strips, min(reader.info.duration, LONGEST_OVERLAY))


def write_preview(path: Path, strips: Sequence[np.ndarray], seconds: float) -> None:
    """Write strips as an animated WebP of `seconds`, of at most `MOST_BYTES`."""
    webp = _animated(strips, seconds)
    with replacing(path) as part:
        part.write_bytes(webp)


def _animated(strips: Sequence[np.ndarray], seconds: float) -> bytes:
    """An animated WebP. It is reduced step by step until it has at most `MOST_BYTES`."""
    frames, webp = list(strips), BytesIO()
    for scale, quality in _TRIES:
        webp, height = BytesIO(), max(16, round(HEIGHT * scale))
        images = [Image.fromarray(frame if scale == 1 else _at_height(frame, height)) for frame in frames]
        shown = max(20, round(1000 * seconds / len(images)))
        images[0].save(
            webp, "WEBP", save_all=True, append_images=images[1:], duration=shown, loop=0, quality=quality, method=4
        )
        if webp.tell() <= MOST_BYTES:
            break
        if scale < 1:
            frames = frames[:: 2 if len(frames) > 8 else 1]
    return webp.getvalue()


def _at_height(picture: np.ndarray, height: int) -> np.ndarray:
    width = max(1, round(picture.shape[1] * height / picture.shape[0]))
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
