"""The interface of estimators, which find people in frames, then the keypoints of the followed person."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from wan_orchestration.preprocess.keypoints import Pose

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Detection:
    """A person found in a frame."""

    box: Box
    """x0, y0, x1, y1 in px: the area that the visible body covers, as person detectors draw it. Estimators that have
    only keypoints use `keypoints.extent`."""
    score: float
    hint: object = None
    """The estimator's own data, from which it finds the keypoints."""

    @property
    def area(self) -> float:
        x0, y0, x1, y1 = self.box
        return max(x1 - x0, 0.0) * max(y1 - y0, 0.0)


@dataclass(frozen=True)
class Frame:
    """A frame of the driving video, or the reference picture."""

    source: int
    """Index in the source video."""
    time: float
    """Seconds from the start of the source video."""
    pixels: np.ndarray
    """(H, W, 3) uint8 RGB."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, px."""
        return self.pixels.shape[1], self.pixels.shape[0]


class Estimator(Protocol):
    """Finds people and their keypoints."""

    name: str
    batch: int
    """Number of frames per call that is efficient."""
    smooth: float
    """Smoothing that its keypoints need: sigma of a Gaussian in seconds, 0 for none."""

    def detect(self, frames: Sequence[Frame]) -> list[list[Detection]]:
        """The people in each frame, in any order. Call it for frames in order."""
        ...

    def estimate(self, frames: Sequence[Frame], people: Sequence[Detection]) -> list[Pose]:
        """For each frame, the keypoints of one person who was detected in it."""
        ...


def iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes."""
    both = intersection(a, b)
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both) if both else 0.0


def intersection(a: Box, b: Box) -> float:
    """Common area of two boxes, px²."""
    return max(min(a[2], b[2]) - max(a[0], b[0]), 0.0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0.0)
