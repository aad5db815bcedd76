"""Computes the size of the canvas, letterboxes pictures, and crops faces."""

import math
from dataclasses import dataclass

import cv2
import numpy as np

from wan_orchestration.errors import BadInput
from wan_orchestration.jobs.clips import FACE_SIZE

SIZE_STEP = 16
"""The generator needs widths and heights that are multiples of this."""

PixelBox = tuple[int, int, int, int]
"""x0, y0, x1, y1 in px; x1 and y1 are exclusive."""


def canvas_size(width: int, height: int, area: int, step: int = SIZE_STEP) -> tuple[int, int]:
    """(width, height) of about `area` px² in the given proportions, each rounded down to a multiple of `step`.

    Follows the published tools' rule, including its float rounding. BadInput: a side would be 0.
    """
    exact_height = math.sqrt(area / (width / height))
    exact_width = area / exact_height
    size = int(exact_width // step * step), int(exact_height // step * step)
    if 0 in size:
        raise BadInput(
            f"a picture of {width}x{height} cannot be fitted into {area} pixels in steps of {step}: "
            f"it would be {size[0]}x{size[1]}; raise resolution_area, or crop the picture so that it is less narrow"
        )
    return size


@dataclass(frozen=True)
class Letterbox:
    """How a picture is scaled and centred on a canvas. Sizes are (width, height) px."""

    inner: tuple[int, int]
    """Size of the scaled picture."""
    left: int
    top: int
    size: tuple[int, int]
    """The canvas."""

    @classmethod
    def into(cls, source: tuple[int, int], size: tuple[int, int]) -> "Letterbox":
        (width, height), (canvas_width, canvas_height) = source, size
        if height / width > canvas_height / canvas_width:
            inner = int(canvas_height / height * width), canvas_height
            return cls(inner, int((canvas_width - inner[0]) / 2), 0, size)
        inner = canvas_width, int(canvas_width / width * height)
        return cls(inner, 0, int((canvas_height - inner[1]) / 2), size)

    def scale(self, source: tuple[int, int]) -> tuple[float, float]:
        """Canvas px per source px in x and y."""
        return self.inner[0] / source[0], self.inner[1] / source[1]


def letterbox(
    picture: np.ndarray,
    size: tuple[int, int],
    interpolation: int | None = None,
    border: tuple[int, int, int] = (0, 0, 0),
) -> np.ndarray:
    """Scales (H, W[, 3]) uint8 to fit into `size` (width, height), centred, with bars of the colour `border`.

    `interpolation` defaults to area averaging if the canvas is smaller than the picture, else to linear. BadInput: the
    picture is so narrow that a side would be 0.
    """
    height, width = picture.shape[:2]
    if interpolation is None:
        interpolation = cv2.INTER_AREA if size[0] * size[1] < width * height else cv2.INTER_LINEAR
    fit = Letterbox.into((width, height), size)
    if 0 in fit.inner:
        raise BadInput(f"a picture of {width}x{height} is too narrow to be fitted into {size[0]}x{size[1]}")
    scaled = picture if fit.inner == (width, height) else cv2.resize(picture, fit.inner, interpolation=interpolation)
    if fit.inner == size:
        return scaled
    return cv2.copyMakeBorder(
        scaled,
        fit.top,
        size[1] - fit.inner[1] - fit.top,
        fit.left,
        size[0] - fit.inner[0] - fit.left,
        cv2.BORDER_CONSTANT,
        value=border,
    )


def face_box(face: np.ndarray, size: tuple[int, int], scale: float = 1.3) -> PixelBox | None:
    """The published face crop around (68, 2 or 3) points, clipped to the picture; None if it would be empty.

    The bounding box of the points grows by sqrt(scale) - 1 of its width, half on each side, and of its height, 3/4
    above and 1/4 below.
    """
    points = face[np.isfinite(face[:, :2]).all(axis=1), :2]
    if not len(points):
        return None
    (x0, y0), (x1, y1) = points.min(axis=0), points.max(axis=0)
    width, height = x1 - x0, y1 - y0
    if width <= 0 or height <= 0:
        return None
    grow = math.sqrt(scale) - 1
    box = (
        int(max(x0 - width * grow / 2, 0)),
        int(max(y0 - 3 * height * grow / 4, 0)),
        int(min(x1 + width * grow / 2, size[0])),
        int(min(y1 + height * grow / 4, size[1])),
    )
    return box if box[0] < box[2] and box[1] < box[3] else None


def crop_face(picture: np.ndarray, box: PixelBox) -> np.ndarray:
    """(512, 512, 3) uint8: the `box` of the (H, W, 3) picture, stretched to a square as in training."""
    x0, y0, x1, y1 = box
    return cv2.resize(picture[y0:y1, x0:x1], (FACE_SIZE, FACE_SIZE), interpolation=cv2.INTER_LINEAR)
