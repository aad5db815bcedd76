"""What every estimator does: find people in frames, then the keypoints of the one that is followed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from wan_orchestration.preprocess.keypoints import Pose

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Detection:
    """A person seen in a frame."""

    box: Box
    """x0, y0, x1, y1 in px: the person's extent, the region that the visible body covers, as a detector of people draws
    it; estimators that go by keypoints take `keypoints.extent`."""
    score: float
    hint: object = None
    """What the estimator that made it needs to find the keypoints."""

    @property
    def area(self) -> float:
        x0, y0, x1, y1 = self.box
        return max(x1 - x0, 0.0) * max(y1 - y0, 0.0)


@dataclass(frozen=True)
class Frame:
    """A frame of the driving video, or the reference picture."""

    source: int
    """Place in the source video."""
    time: float
    """Seconds from the beginning of the source video."""
    pixels: np.ndarray
    """(H, W, 3) uint8 RGB."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, px."""
        return self.pixels.shape[1], self.pixels.shape[0]


class Estimator(Protocol):
    name: str
    batch: int
    """Frames worth handing over at once."""
    smooth: float
    """Seconds of smoothing (a Gaussian's sigma) that its keypoints need; 0 for none."""

    def detect(self, frames: Sequence[Frame]) -> list[list[Detection]]:
        """The people in each frame, in any order. Calls follow the video's time."""
        ...

    def estimate(self, frames: Sequence[Frame], people: Sequence[Detection]) -> list[Pose]:
        """The keypoints of one person, found in it, for each frame."""
        ...


def overlap(a: Box, b: Box) -> float:
    """Intersection over union of two boxes."""
    both = shared(a, b)
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both) if both else 0.0


def shared(a: Box, b: Box) -> float:
    """Area in px of what two boxes have in common."""
    return max(min(a[2], b[2]) - max(a[0], b[0]), 0.0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0.0)
