"""Measures of a video that need only its frames: frozen frames, colour drift, jumps where segments meet."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np

from wan_orchestration.settings.checks import BLANK_DEVIATION

SIDE = 192
"""Before measuring, frames are reduced to this many px on the longer side."""
STILL = 0.05
"""Frames whose values differ by less than this on average (of 255) are the same: encoding causes such differences."""
LEAST_CHANGE = 0.5
"""A jump between two frames with a smaller mean difference (of 255) is invisible."""


def small(frame: np.ndarray) -> np.ndarray:
    """A frame (H, W, 3) uint8, reduced to a longer side of `SIDE` px."""
    height, width = frame.shape[:2]
    scale = SIDE / max(height, width)
    if scale >= 1:
        return frame
    return cv2.resize(
        frame, (max(1, round(width * scale)), max(1, round(height * scale))), interpolation=cv2.INTER_AREA
    )


@dataclass
class SegmentSums:
    """Sums over the frames of one segment: of the mean and of the standard deviation of L, a and b."""

    frames: int = 0
    blank: int = 0
    """Number of frames that show a single colour."""
    mean: np.ndarray = field(default_factory=lambda: np.zeros(3))
    spread: np.ndarray = field(default_factory=lambda: np.zeros(3))

    @property
    def colours(self) -> list[float]:
        """Means, then standard deviations of L, a and b."""
        return (np.concatenate([self.mean, self.spread]) / max(self.frames, 1)).round(4).tolist()


class FrameMeasures:
    """Measures a video from its frames, which `add` takes one by one with the frames of the pose clip.

    Args:
        lengths: number of frames of each segment, in order. They add up to the video's.
    """

    def __init__(self, lengths: Sequence[int]) -> None:
        self.borders = list(np.cumsum(lengths[:-1], dtype=int))
        self.segments = [SegmentSums() for _ in lengths]
        self.frozen = 0
        """The longest run of frames in which the picture stands still while the pose moves."""
        self.changes: list[float] = []
        """How much each frame differs from the one before: mean absolute difference (of 255). 0 for the first."""
        self.pose_changes: list[float] = []
        """The same of the pose clip."""
        self._frozen_now = 0
        self._last: tuple[np.ndarray, np.ndarray] | None = None

    def add(self, frame: np.ndarray, pose: np.ndarray) -> None:
        """Add the next frame and its driving pose, both (H, W, 3) uint8 RGB."""
        index, frame, pose = len(self.changes), small(frame), small(pose)
        segment = self.segments[int(np.searchsorted(self.borders, index, side="right"))]
        lab = cv2.cvtColor(frame.astype(np.float32) / 255, cv2.COLOR_RGB2LAB).reshape(-1, 3)
        segment.frames += 1
        segment.blank += bool(frame.std() < BLANK_DEVIATION)
        segment.mean += lab.mean(axis=0)
        segment.spread += lab.std(axis=0)
        change, moved = 0.0, 0.0
        if self._last is not None:
            change, moved = (difference(*pair) for pair in zip((frame, pose), self._last))
        self._frozen_now = self._frozen_now + 1 if index and change < STILL < moved else 0
        self.frozen = max(self.frozen, self._frozen_now)
        self.changes.append(change)
        self.pose_changes.append(moved)
        self._last = frame, pose

    def colour_drift(self) -> list[float]:
        """Distance of each segment's colours from the first segment's: of means and standard deviations of L, a, b.

        In units of CIE 1976 colour difference. A difference of about 2 is visible side by side.
        """
        colours = [segment.colours for segment in self.segments]
        return [distance(one, colours[0]) for one in colours]

    def seam(self) -> tuple[float, int | None]:
        """The largest change at a border of two segments relative to those inside segments, and the frame after it.

        1 equals the 95th percentile of the changes inside segments, or `LEAST_CHANGE` if that is larger. 0 for a single
        segment.
        """
        inside = [change for i, change in enumerate(self.changes) if i and i not in self.borders]
        if not self.borders or not inside:
            return 0.0, None
        usual = max(float(np.percentile(inside, 95)), LEAST_CHANGE)
        worst = max(self.borders, key=lambda border: self.changes[border])
        return round(self.changes[worst] / usual, 3), int(worst)


def distance(one: Sequence[float], other: Sequence[float]) -> float:
    """Distance of two segments' colours."""
    return round(float(np.linalg.norm(np.subtract(one, other))), 3)


def difference(one: np.ndarray, other: np.ndarray) -> float:
    """Mean absolute difference of two pictures' values."""
    return float(cv2.absdiff(one, other).mean())
