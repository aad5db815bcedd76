"""The contact sheet: one picture that shows the followed person and the drawn skeleton in sampled frames."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from wan_orchestration.files import replacing
from wan_orchestration.preprocess.drawing import draw_skeleton
from wan_orchestration.preprocess.follow import SampledFrame
from wan_orchestration.preprocess.motion import Motion

_COLUMNS = 4
_FOLLOWED, _OTHER = (0, 220, 0), (230, 160, 0)


def write_contact_sheet(path: Path, samples: Sequence[SampledFrame], motion: Motion, fps: float) -> None:
    """Writes a JPEG of sampled frames: people with numbers, the followed one in green, skeleton, frame number, time."""
    tiles = [_tile(sample, motion, fps) for sample in sorted(samples, key=lambda sample: sample.index)]
    blank = np.zeros_like(tiles[0])
    tiles += [blank] * (-len(tiles) % _COLUMNS if len(tiles) > _COLUMNS else 0)
    columns = min(_COLUMNS, len(tiles))
    rows = [np.hstack(tiles[start : start + columns]) for start in range(0, len(tiles), columns)]
    with replacing(path) as part:
        Image.fromarray(np.vstack(rows)).save(part, "JPEG", quality=85)


def _tile(sample: SampledFrame, motion: Motion, fps: float) -> np.ndarray:
    tile = sample.picture.copy()
    height, width = tile.shape[:2]
    scale = width / motion.size[0], height / motion.size[1]
    pose = motion[sample.index].moved(scale, (0.0, 0.0), (width, height))
    draw_skeleton(tile, pose)
    for number, person in enumerate(sample.people, 1):
        x0, y0, x1, y1 = (round(value * scale[axis % 2]) for axis, value in enumerate(person.box))
        colour = _FOLLOWED if person is sample.followed else _OTHER
        cv2.rectangle(tile, (x0, y0), (x1, y1), colour, 2)
        _label(tile, str(number), (max(x0, 0) + 4, max(y0, 0) + 22), colour)
    _label(tile, f"{sample.index}  {sample.index / fps:.2f} s", (8, height - 10), (255, 255, 255))
    return tile


def _label(picture: np.ndarray, text: str, at: tuple[int, int], colour: tuple[int, int, int]) -> None:
    for thickness, ink in ((4, (0, 0, 0)), (1, colour)):
        cv2.putText(picture, text, at, cv2.FONT_HERSHEY_SIMPLEX, 0.6, ink, thickness, cv2.LINE_AA)
