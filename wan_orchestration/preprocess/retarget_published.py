"""The published tools' rule for fitting a driver's motion to the character's build.

Use it for results that match theirs; `retarget` has the better rule. This one measures the first frame and the picture
regardless of confidence, and places the driver's ankle halfway between the character's ankle and toe. Two of its
defects are corrected: a hand always goes to its own wrist (theirs swaps wrists when hands cross), and a missing joint
gets confidence 0 (theirs raises an error).
"""

import itertools
import math
from dataclasses import replace

import numpy as np

from wan_orchestration.preprocess.keypoints import (
    LEFT_ANKLE,
    LEFT_HIP,
    LEFT_TOE,
    LEFT_WRIST,
    LIMBS,
    NECK,
    NOSE,
    RIGHT_ANKLE,
    RIGHT_HIP,
    RIGHT_TOE,
    RIGHT_WRIST,
    Pose,
    absent,
)

# Pairs of limbs (indices into LIMBS) that share a ratio: the larger of the two, or for limbs of the head the mean.
_LARGER = ((0, 1), (2, 4), (3, 5), (6, 9), (7, 10), (8, 11), (17, 18))
_MEAN = ((13, 15), (14, 16))
_FEET = {18: 8, 17: 11}
"""Foot limb -> shin limb. The foot is at most half as long as the shin."""

# Chains of joints: all joints after a missing one count as missing. Below, for each limb its mirror image, whose length
# replaces a missing length.
_CHAINS = ((2, 3, 4), (5, 6, 7), (11, 12, 13, 18), (8, 9, 10, 19))
_MIRRORED = {
    (2, 3): (5, 6), (3, 4): (6, 7), (11, 12): (8, 9), (12, 13): (9, 10), (13, 18): (10, 19),
    (5, 6): (2, 3), (6, 7): (3, 4), (8, 9): (11, 12), (9, 10): (12, 13), (10, 19): (13, 18),
}  # fmt: skip
_ARMS = ((2, 3), (3, 4), (5, 6), (6, 7))
_FOOT_LIMBS = ((13, 18), (10, 19))

_FULL, _THREE_QUARTER, _HALF = 2, 1, 0


class PublishedRetargeting:
    """Fits poses of the driving video to the reference's build, measured in the first pose and the reference's pose.

    Joints are (20, 2) px. Missing ones are NaN.
    """

    def __init__(self, first: Pose, reference: Pose) -> None:
        self._size = reference.size
        self._scale = _scale(first, reference)
        driver = _repaired(_joints(first))
        self._dst_size = tuple(int(side * self._scale) for side in reference.size)
        # The reference is measured at the driver's scale, on a canvas whose sides are whole px.
        target = _repaired(_joints(reference) / reference.size * self._dst_size)
        self._missing = np.isnan(driver).any(axis=1) | np.isnan(target).any(axis=1)
        self.ratios = _ratios(driver, target)
        self._extent = min(_extent(first), _extent(reference))
        self._anchor_x, self._offset = self._place(_chained(driver, self.ratios), target)

    def _place(self, driver: np.ndarray, target: np.ndarray) -> tuple[float, np.ndarray]:
        if self._extent != _FULL:
            return driver[NECK, 0], driver[NECK] - target[NECK]
        ground = np.nanmax(target[[RIGHT_ANKLE, LEFT_ANKLE], 1])
        toes = target[[RIGHT_TOE, LEFT_TOE], 1]
        if not np.isnan(toes).any():
            ground = np.nanmax((target[[RIGHT_ANKLE, LEFT_ANKLE], 1] + toes) / 2)
        hips = [RIGHT_HIP, LEFT_HIP]
        anchor = driver[hips, 0].mean()
        offset = anchor - target[hips, 0].mean(), np.nanmax(driver[[RIGHT_ANKLE, LEFT_ANKLE], 1]) - ground
        return anchor, np.array(offset)

    def __call__(self, pose: Pose, index: int) -> Pose:
        """`pose` with the reference's build, on a canvas of the reference's size. Frame 0 is placed exactly."""
        old = _joints(pose)
        old[self._missing] = np.nan
        moved = _chained(old, self.ratios, clamp_feet=True)
        offset = self._offset.copy()
        if index == 0:
            if self._extent == _FULL:
                offset[0] += moved[[RIGHT_HIP, LEFT_HIP], 0].mean() - self._anchor_x
            elif self._extent == _HALF:
                offset[0] += moved[NECK, 0] - self._anchor_x
        new = (moved - offset) / self._scale
        confidence = np.where(np.isnan(new).any(axis=1), 0, pose.body[:, 2])
        hand_ratio = max(self.ratios[0], self.ratios[1]) / self._scale
        return replace(
            pose,
            size=self._size,
            body=np.column_stack([new, confidence]),
            left_hand=_moved_hand(pose.left_hand, old[LEFT_WRIST], new[LEFT_WRIST], hand_ratio),
            right_hand=_moved_hand(pose.right_hand, old[RIGHT_WRIST], new[RIGHT_WRIST], hand_ratio),
        )


def _joints(pose: Pose) -> np.ndarray:
    return pose.body[:, :2].copy()


def _scale(first: Pose, reference: Pose) -> float:
    """Driver px per reference px: by the height from nose to ankles, else from nose to hips, else by picture areas."""
    for low in ((RIGHT_ANKLE, LEFT_ANKLE), (RIGHT_HIP, LEFT_HIP)):
        needed = [NOSE, *low]
        if all((pose.body[needed, 2] > 0.5).all() for pose in (first, reference)):
            heights = [abs(pose.body[list(low), 1].mean() - pose.body[NOSE, 1]) for pose in (first, reference)]
            return heights[0] / heights[1]
    return math.sqrt(math.prod(first.size)) / math.sqrt(math.prod(reference.size))


def _extent(pose: Pose) -> int:
    """How much of the body the picture shows: _FULL, _THREE_QUARTER (without ankles) or _HALF (without hips)."""

    def shown(*joints: int) -> bool:
        rows = pose.body[list(joints)]
        return bool(((rows[:, 2] >= 0.4) & (rows[:, 1] <= pose.size[1])).all())

    if not shown(RIGHT_HIP, LEFT_HIP):
        return _HALF
    return _FULL if shown(RIGHT_ANKLE, LEFT_ANKLE) else _THREE_QUARTER


def _length(joints: np.ndarray, limb: tuple[int, int]) -> float:
    return float(np.linalg.norm(joints[limb[1]] - joints[limb[0]]))


def _repaired(joints: np.ndarray) -> np.ndarray:
    """Places each missing joint straight below its parent, by the mirrored limb's length, else by the torso's."""
    joints = joints.copy()
    for chain in _CHAINS:
        for above, below in itertools.pairwise(chain):
            if np.isnan(joints[above]).any():
                joints[below] = np.nan
    torso = [_length(joints, (NECK, hip)) for hip in (RIGHT_HIP, LEFT_HIP)]
    for limb, mirrored in _MIRRORED.items():
        parent, child = limb
        if np.isnan(joints[parent]).any() or not np.isnan(joints[child]).any():
            continue
        length = _length(joints, mirrored)
        if math.isnan(length):
            right, left = torso
            parts = (right, left / 5) if limb in _FOOT_LIMBS else (right / 2, left / 2) if limb in _ARMS else torso
            length = float(np.nanmax(parts))
        joints[child] = joints[parent] + (0, length)
    return joints


def _ratios(driver: np.ndarray, target: np.ndarray) -> np.ndarray:
    """(19,): for each limb, its length in the target divided by its length in the driver."""
    ratios = np.array(
        [_length(target, limb) / _length(driver, limb) if _length(driver, limb) else np.nan for limb in LIMBS]
    )
    shoulders = np.nanmean(ratios[:2]) if not np.isnan(ratios[:2]).all() else 1.0
    ratios[np.isnan(ratios)] = shoulders
    for pair in _LARGER:
        ratios[list(pair)] = ratios[list(pair)].max()
    for pair in _MEAN:
        ratios[list(pair)] = ratios[list(pair)].mean()
    return ratios


def _chained(joints: np.ndarray, ratios: np.ndarray, clamp_feet: bool = False) -> np.ndarray:
    """Scales every limb by its ratio and keeps its direction, from the neck outwards. The neck stays in place."""
    moved = np.full_like(joints, np.nan)
    moved[NECK] = joints[NECK]
    for i, (parent, child) in enumerate(LIMBS):
        limb = ratios[i] * (joints[child] - joints[parent])
        if clamp_feet and i in _FEET:
            shin = _length(moved, LIMBS[_FEET[i]])
            length = float(np.linalg.norm(limb))
            if length > shin / 2:
                limb = limb * (shin / 2 / length)
        moved[child] = moved[parent] + limb
    return moved


def _moved_hand(hand: np.ndarray, old_wrist: np.ndarray, new_wrist: np.ndarray, ratio: float) -> np.ndarray:
    """The hand scaled about its root, which moves to the new wrist. Truncated to whole px, as published."""
    root, found = hand[0, :2], hand[:, 2] >= 0.4
    if np.isnan(new_wrist).any() or not found.any():
        return absent(len(hand))
    shift = new_wrist - (root if found[0] else old_wrist)
    moved = np.trunc(root + (hand[:, :2] - root) * ratio + shift)
    placed = np.column_stack([moved, hand[:, 2]])
    placed[~found] = np.nan, np.nan, 0
    return placed
