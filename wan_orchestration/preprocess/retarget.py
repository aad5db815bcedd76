"""Retargeting: fits the driver's motion to the character's build.

Limbs keep the driver's directions and get the character's lengths. The published rule measures lengths only in the
first frame. This rule measures them in all frames that show a limb reliably: a foreshortened limb always looks too
short, so a high quantile of its lengths is close to its true length. Ratios are bounded, an uncertain joint does not
move its neighbours, ankles are placed on the picture's ankles, and each hand stays at its own wrist.
"""

from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from wan_orchestration.preprocess.keypoints import (
    CONFIDENT,
    LEFT_ANKLE,
    LEFT_HIP,
    LEFT_WRIST,
    LIMBS,
    NECK,
    RIGHT_ANKLE,
    RIGHT_HIP,
    RIGHT_WRIST,
    Pose,
    confident,
)
from wan_orchestration.preprocess.motion import Motion

TRUE_LENGTH = 0.9
"""The quantile of a limb's lengths that counts as its true length."""
BOUNDS = (0.5, 2.0)
"""Smallest and largest ratio of a limb, relative to the whole body's."""

# Left and right limbs (indices into LIMBS) that share a ratio.
_PAIRS = ((0, 1), (2, 4), (3, 5), (6, 9), (7, 10), (8, 11), (13, 15), (14, 16), (17, 18))
_ALIKE = {limb: pair for pair in _PAIRS for limb in pair} | {12: (12,)}
_PARENTS, _CHILDREN = (list(column) for column in zip(*LIMBS))
_ANKLES, _HIPS = [RIGHT_ANKLE, LEFT_ANKLE], [RIGHT_HIP, LEFT_HIP]


@dataclass(frozen=True)
class Retargeting:
    """Maps a driver's pose onto the canvas, with the character's build. Made by `fit`."""

    size: tuple[int, int]
    scale: float
    """Canvas px per driver px for the whole body."""
    ratios: np.ndarray
    """(19,): for each of LIMBS, a factor in addition to `scale`."""
    offset: np.ndarray
    """(2,) px on the canvas."""
    anchor: str
    """Which joints were placed on the picture's: ankles, hips, neck, or all in common (joints)."""

    @classmethod
    def fit(cls, motion: Motion, reference: Pose, fps: float) -> Self | None:
        """Fits the driver's motion to the picture's pose. None: they show no limb, or no joint, in common."""
        driver = _true_lengths(motion)
        target = _lengths(reference.body[None])[0]
        paired = [
            (np.nanmax(target[list(pair)]), np.nanmean(driver[list(pair)])) if _measured(target, driver, pair) else None
            for pair in (_ALIKE[limb] for limb in range(len(LIMBS)))
        ]
        measured = np.array([np.nan if lengths is None else lengths[0] / lengths[1] for lengths in paired])
        if np.isnan(measured).all():
            return None
        weights = np.array([0 if lengths is None else lengths[1] for lengths in paired])
        scale = _weighted_median(measured, weights)
        ratios = np.clip(np.nan_to_num(measured / scale, nan=1.0), *BOUNDS)
        unplaced = cls(reference.size, scale, ratios, np.zeros(2), "")
        return unplaced._placed(motion, reference, round(fps))

    def _placed(self, motion: Motion, reference: Pose, window: int) -> Self | None:
        """Adds the offset that places one second of the motion (`window` frames) on the picture's pose.

        The second begins at the start, or where the joints first appear. None: no joint is visible in both.
        """
        in_picture = confident(reference.body)
        in_video = _reliable(motion.body)
        anchors = {
            "ankles": (_HIPS if in_picture[_HIPS].all() else _ANKLES, _ANKLES),
            "hips": (_HIPS, _HIPS),
            "neck": ([NECK], [NECK]),
            "joints": (shared := np.flatnonzero(in_picture & in_video.any(axis=0)).tolist(), shared),
        }
        for name, (across, down) in anchors.items():
            used = sorted({*across, *down})
            frames = np.flatnonzero(in_video[:, used].all(axis=1))
            if not used or not in_picture[used].all() or not len(frames):
                continue
            frames = frames[frames < window] if frames[0] < window else frames[:window]
            moved = np.stack([self._joints(motion[t].body) for t in frames])
            x = np.median(moved[:, across, 0].mean(axis=1)) - reference.body[across, 0].mean()
            lowest = np.max if name == "ankles" else np.mean
            y = np.median(lowest(moved[:, down, 1], axis=1)) - lowest(reference.body[down, 1])
            return replace(self, offset=np.array([-x, -y]), anchor=name)
        return None

    def __call__(self, pose: Pose) -> Pose:
        """The pose on the canvas."""
        body = self._joints(pose.body)
        hand_scale = self.scale * self.ratios[:2].mean()
        hands = {
            "left_hand": _at_wrist(pose.left_hand, pose.body[LEFT_WRIST, :2], body[LEFT_WRIST, :2], hand_scale),
            "right_hand": _at_wrist(pose.right_hand, pose.body[RIGHT_WRIST, :2], body[RIGHT_WRIST, :2], hand_scale),
        }
        return replace(pose, size=self.size, body=body, **hands)

    def _joints(self, body: np.ndarray) -> np.ndarray:
        """(20, 3) joints on the canvas. Each is placed relative to its nearest reliable ancestor."""
        moved = body.copy()
        reliable = confident(body)
        moved[:, :2] = body[:, :2] * self.scale + self.offset
        # For each joint: itself if reliable, else its nearest reliable ancestor (None: it has none), and the ratios of
        # the limbs in between.
        origin: dict[int, tuple[int | None, tuple[float, ...]]] = {NECK: (NECK if reliable[NECK] else None, ())}
        for limb, (parent, child) in enumerate(LIMBS):
            joint, path = origin[parent]
            path = (*path, float(self.ratios[limb]))
            if joint is not None:
                reach = body[child, :2] - body[joint, :2]
                moved[child, :2] = moved[joint, :2] + self.scale * np.mean(path) * reach
            origin[child] = (child, ()) if reliable[child] else (joint, path)
        return moved


def _lengths(bodies: np.ndarray) -> np.ndarray:
    """(T, 19) lengths of limbs in px, from (T, 20, 3) joints; NaN if an end is unreliable."""
    reliable = _reliable(bodies)
    lengths = np.linalg.norm(bodies[:, _CHILDREN, :2] - bodies[:, _PARENTS, :2], axis=-1)
    return np.where(reliable[:, _CHILDREN] & reliable[:, _PARENTS] & (lengths > 0), lengths, np.nan)


def _true_lengths(motion: Motion) -> np.ndarray:
    """(19,) lengths of the driver's limbs in px; NaN for limbs that no frame shows."""
    lengths = _lengths(motion.body)
    seen = ~np.isnan(lengths).all(axis=0)
    true = np.full(len(LIMBS), np.nan)
    true[seen] = np.nanquantile(lengths[:, seen], TRUE_LENGTH, axis=0)
    return true


def _measured(target: np.ndarray, driver: np.ndarray, pair: tuple[int, ...]) -> bool:
    return not (np.isnan(target[list(pair)]).all() or np.isnan(driver[list(pair)]).all())


def _weighted_median(values: np.ndarray, weights: np.ndarray) -> float:
    order = np.argsort(values)
    order = order[~np.isnan(values[order])]
    total = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(total, total[-1] / 2)])


def _reliable(bodies: np.ndarray) -> np.ndarray:
    """(T, 20) bool: which of the (T, 20, 3) joints are reliable."""
    return (bodies[..., 2] >= CONFIDENT) & np.isfinite(bodies[..., :2]).all(axis=-1)


def _at_wrist(hand: np.ndarray, old_wrist: np.ndarray, new_wrist: np.ndarray, scale: float) -> np.ndarray:
    """(21, 3): the scaled hand with its root on the new wrist."""
    root = hand[0, :2] if np.isfinite(hand[0, :2]).all() and hand[0, 2] > 0 else old_wrist
    return np.column_stack([new_wrist + (hand[:, :2] - root) * scale, hand[:, 2]])
