"""Keypoints of one person: 20 body joints, two hands of 21 points, 68 face points.

Points are (x, y, confidence) in px of the picture in which they were found. A missing point has confidence 0 and
NaN coordinates. Left and right are the person's.

Body joints: 0 nose, 1 neck, 2-4 right shoulder, elbow, wrist, 5-7 left shoulder, elbow, wrist, 8-10 right hip,
knee, ankle, 11-13 left hip, knee, ankle, 14 right eye, 15 left eye, 16 right ear, 17 left ear, 18 left toe,
19 right toe. Hands: wrist, then thumb, index, middle, ring and little finger from the palm outwards.
"""

from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from wan_orchestration.jobs.clips import CONFIDENT

NOSE, NECK = 0, 1
RIGHT_SHOULDER, RIGHT_ELBOW, RIGHT_WRIST = 2, 3, 4
LEFT_SHOULDER, LEFT_ELBOW, LEFT_WRIST = 5, 6, 7
RIGHT_HIP, RIGHT_KNEE, RIGHT_ANKLE = 8, 9, 10
LEFT_HIP, LEFT_KNEE, LEFT_ANKLE = 11, 12, 13
LEFT_TOE, RIGHT_TOE = 18, 19
HEAD = (0, 14, 15, 16, 17)

LIMBS = (
    (1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13),
    (1, 0), (0, 14), (14, 16), (0, 15), (15, 17), (13, 18), (10, 19),
)  # fmt: skip
"""(parent, child) joints, parents before children, in the order in which the skeleton is drawn."""

_MARGIN = 0.1
"""How far the body (hair, soles, fingers, clothes) extends beyond its keypoints, as a fraction of the longer side."""

# Each body joint is the mean of two COCO-WholeBody points, mostly of the same point twice.
_BODY_A = (0, 6, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3, 17, 20)
_BODY_B = (0, 5, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3, 18, 21)


@dataclass(frozen=True)
class Pose:
    """Keypoints of one person in one picture. Arrays are (points, 3): x, y in px, confidence."""

    size: tuple[int, int]
    """Width and height of the picture in px."""
    body: np.ndarray
    left_hand: np.ndarray
    right_hand: np.ndarray
    face: np.ndarray

    @classmethod
    def from_wholebody(cls, points: np.ndarray, size: tuple[int, int]) -> Self:
        """Converts the (133, 3) points of COCO-WholeBody."""
        points = np.asarray(points, np.float64)
        return cls(
            size,
            body=(points[list(_BODY_A)] + points[list(_BODY_B)]) / 2,
            left_hand=points[91:112].copy(),
            right_hand=points[112:133].copy(),
            face=points[23:91].copy(),
        )

    @classmethod
    def empty(cls, size: tuple[int, int]) -> Self:
        """A pose without any points."""
        return cls(size, *(absent(count) for count in PARTS.values()))

    def moved(self, scale: tuple[float, float], offset: tuple[float, float], size: tuple[int, int]) -> Self:
        """The pose in another picture of `size`: x, y times `scale` plus `offset`, both (x, y)."""

        def move(points: np.ndarray) -> np.ndarray:
            return np.column_stack([points[:, :2] * scale + offset, points[:, 2]])

        return replace(self, size=size, **{part: move(getattr(self, part)) for part in PARTS})

    def has(self, part: str) -> bool:
        """Whether any point of `part` (body, left_hand, right_hand, face) was found."""
        return bool((getattr(self, part)[:, 2] > 0).any())


PARTS = {"body": 20, "left_hand": 21, "right_hand": 21, "face": 68}
"""The fields of a pose that hold points, and their numbers of points."""


def absent(count: int) -> np.ndarray:
    """(count, 3) missing points."""
    return np.tile(np.array([np.nan, np.nan, 0.0]), (count, 1))


def confident(points: np.ndarray, threshold: float = CONFIDENT) -> np.ndarray:
    """(n,) bool: which of the (n, 3) points are reliable."""
    return (points[:, 2] >= threshold) & np.isfinite(points[:, :2]).all(axis=1)


def bounds(points: np.ndarray, threshold: float = CONFIDENT) -> tuple[float, float, float, float] | None:
    """x0, y0, x1, y1 around the confident points; None if there are none."""
    seen = points[confident(points, threshold), :2]
    if not len(seen):
        return None
    (x0, y0), (x1, y1) = seen.min(axis=0), seen.max(axis=0)
    return float(x0), float(y0), float(x1), float(y1)


def extent(points: np.ndarray, size: tuple[int, int]) -> tuple[float, float, float, float] | None:
    """x0, y0, x1, y1 px of the area that a body with these (n, 3) points covers in a picture of `size` (width, height).

    Points that are not confident count only if none is confident. None: no points, or all lie outside.
    """
    box = bounds(points) or bounds(points, 1e-6)
    if box is None:
        return None
    x0, y0, x1, y1 = box
    beyond = max(x1 - x0, y1 - y0, 10.0) * _MARGIN
    x0, y0, x1, y1 = max(x0 - beyond, 0.0), max(y0 - beyond, 0.0), min(x1 + beyond, size[0]), min(y1 + beyond, size[1])
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None
