"""Mask hints: a box or points that a person drew on one frame. They move with the followed person through the video."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Self

import cv2
import numpy as np

from wan_orchestration.preprocess.estimators.base import Box
from wan_orchestration.preprocess.geometry import Letterbox
from wan_orchestration.preprocess.keypoints import LIMBS, Pose, bounds, confident
from wan_orchestration.preprocess.motion import Motion

_TORSO = (0, 1, 2, 5, 8, 11)
"""Nose, neck, shoulders, hips: the joints that tell the person's size and position."""
_DISC = 0.04
"""Radius of a point's disc, as a fraction of the longer side of the person's box."""
_SMALLEST_DISC = 4.0
"""px."""


@dataclass(frozen=True)
class MaskHint:
    """One entry of `PreprocessSettings.mask_hints`."""

    kind: Literal["box", "point", "not"]
    values: tuple[float, ...]
    """px of the driving video, or fractions of its sides if none is above 1."""
    seconds: float | None
    """The moment of the driving video at which it was drawn. None: that of `people.jpg`."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parses an entry whose syntax is already checked."""
        kind, _, rest = text.partition(":")
        numbers, _, seconds = rest.partition("@")
        values = tuple(float(number) for number in numbers.split(","))
        return cls(kind.strip(), values, float(seconds) if seconds else None)  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True)
class Prompts:
    """The hints in one frame, in px of the canvas."""

    boxes: list[Box]
    """The person is inside of one."""
    inside: np.ndarray
    """(n, 2) points on the person."""
    outside: np.ndarray
    """(n, 2) points that do not belong to the person."""
    bystanders: np.ndarray
    """(n, 2) where the points of `outside` were drawn: what they mean may stand still while the person moves."""
    drawn: bool
    """Whether a hint was drawn in this frame. In other frames, all are moved."""

    def corrected(self, mask: np.ndarray, pose: Pose) -> np.ndarray:
        """A copy of an outline, (H, W) uint8 of 0 and 1, that agrees with the hints.

        It is empty outside of the boxes. A point of `outside` removes its connected part of the outline, or a disc if
        this part holds joints of the person; a point of `bystanders` removes only a part without joints. A point of
        `inside` adds a disc, if it is not in the outline.
        """
        mask = mask.copy()
        if self.boxes:
            allowed = np.zeros_like(mask)
            for x0, y0, x1, y1 in self.boxes:
                allowed[max(round(y0), 0) : max(round(y1), 0), max(round(x0), 0) : max(round(x1), 0)] = 1
            mask *= allowed
        radius = _disc_radius(pose)
        for x, y in _within(np.concatenate([self.bystanders, self.outside]), mask):
            if mask[y, x] and not _holds_joints(part := _connected_part(mask, x, y), pose):
                mask[part] = 0
        for x, y in _within(self.outside, mask):
            cv2.circle(mask, (x, y), radius, 0, -1)
        for x, y in _within(self.inside, mask):
            if not mask[y, x]:
                cv2.circle(mask, (x, y), radius, 1, -1)
        return mask


class MovingHints:
    """Mask hints that move with the person.

    A point keeps its place relative to the limb that was nearest when it was drawn. A box keeps its distances from the
    person's keypoints.
    """

    def __init__(
        self,
        hints: Sequence[MaskHint],
        motion: Motion,
        canvas: tuple[int, int],
        frame_at: Callable[[float | None], int],
    ) -> None:
        """`frame_at` finds the frame of a hint's moment. `motion` is in the driving video's px."""
        size = motion.size
        fit = Letterbox.into(size, canvas)
        scale, shift = fit.scale(size), (fit.left, fit.top)
        seen = np.flatnonzero(motion.found("body"))
        self._boxes: list[tuple[Box, Pose]] = []
        self._points: list[tuple[str, np.ndarray, Pose]] = []
        self._drawn = {frame_at(hint.seconds) for hint in hints}
        for hint in hints:
            fractions = max(hint.values) <= 1
            px = [value * size[axis % 2] if fractions else value for axis, value in enumerate(hint.values)]
            placed = [value * scale[axis % 2] + shift[axis % 2] for axis, value in enumerate(px)]
            # Without the person in that frame, the nearest frame with the person.
            nearest = int(seen[np.abs(seen - frame_at(hint.seconds)).argmin()])
            pose = motion[nearest].moved(scale, shift, canvas)
            if hint.kind == "box":
                x0, y0, x1, y1 = placed
                self._boxes.append(((x0, y0, x1, y1), pose))
            else:
                self._points.append((hint.kind, np.array(placed), pose))

    def at(self, index: int, pose: Pose) -> Prompts:
        """The hints in a frame where the person has this pose on the canvas, without those that cannot be moved."""
        boxes = [moved for box, drawn in self._boxes if (moved := _moved_box(box, drawn, pose)) is not None]
        points = [(kind, _moved_point(point, drawn, pose)) for kind, point, drawn in self._points]
        inside, outside = (
            np.array([point for kind, point in points if kind == wanted and point is not None]).reshape(-1, 2)
            for wanted in ("point", "not")
        )
        bystanders = np.array([point for kind, point, _ in self._points if kind == "not"]).reshape(-1, 2)
        return Prompts(boxes, inside, outside, bystanders, index in self._drawn)


def _moved_point(point: np.ndarray, drawn: Pose, pose: Pose) -> np.ndarray | None:
    """A point of the pose `drawn` in the frame of `pose`; None if the poses have no joint in common."""
    change = _change(drawn, pose)
    if change is None:
        return None
    scale, old, new = change
    both = confident(drawn.body) & confident(pose.body)
    limbs = [(start, end) for start, end in LIMBS if both[start] and both[end]]
    if not limbs:
        return new + (point - old) * scale
    places = [_nearest_on(drawn.body[start, :2], drawn.body[end, :2], point) for start, end in limbs]
    nearest = min(range(len(limbs)), key=lambda n: math.dist(places[n][1], point))
    (start, end), (along, foot) = limbs[nearest], places[nearest]
    before, after = (each.body[end, :2] - each.body[start, :2] for each in (drawn, pose))
    turn = math.atan2(after[1], after[0]) - math.atan2(before[1], before[0])
    cos, sin = math.cos(turn), math.sin(turn)
    offset = np.array([[cos, -sin], [sin, cos]]) @ (point - foot) * scale
    return pose.body[start, :2] + along * after + offset


def _moved_box(box: Box, drawn: Pose, pose: Pose) -> Box | None:
    change, before, after = _change(drawn, pose), _bounds(drawn), _bounds(pose)
    if change is None or before is None or after is None:
        return None
    x0, y0, x1, y1 = (new + (edge - old) * change[0] for edge, old, new in zip(box, before, after))
    return x0, y0, x1, y1


def _change(drawn: Pose, pose: Pose) -> tuple[float, np.ndarray, np.ndarray] | None:
    """How much larger the person is in `pose`, and the person's centre in both. None: no joint in common."""
    both = confident(drawn.body) & confident(pose.body)
    torso = np.zeros_like(both)
    torso[list(_TORSO)] = True
    used = both & torso if (both & torso).sum() >= 2 else both
    if not used.any():
        return None
    old, new = drawn.body[used, :2], pose.body[used, :2]
    spreads = [float(np.linalg.norm(points - points.mean(axis=0))) for points in (old, new)]
    scale = spreads[1] / spreads[0] if min(spreads) > 1 else 1.0
    return scale, old.mean(axis=0), new.mean(axis=0)


def _nearest_on(start: np.ndarray, end: np.ndarray, point: np.ndarray) -> tuple[float, np.ndarray]:
    """The place on a limb that is nearest to a point: as a fraction of the limb, and in px."""
    along = float(np.clip((point - start) @ (end - start) / max(float(np.sum((end - start) ** 2)), 1e-6), 0, 1))
    return along, start + along * (end - start)


def _bounds(pose: Pose) -> Box | None:
    return bounds(np.concatenate([pose.body, pose.left_hand, pose.right_hand, pose.face]))


def _disc_radius(pose: Pose) -> int:
    box = _bounds(pose)
    side = max(box[2] - box[0], box[3] - box[1]) if box else 0.0
    return round(max(side * _DISC, _SMALLEST_DISC))


def _connected_part(mask: np.ndarray, x: int, y: int) -> np.ndarray:
    """(H, W) bool: the connected part of the mask at a pixel."""
    parts = cv2.connectedComponents(mask)[1]
    return parts == parts[y, x]


def _holds_joints(part: np.ndarray, pose: Pose) -> bool:
    return any(part[y, x] for x, y in _within(pose.body[confident(pose.body), :2], part))


def _within(points: np.ndarray, picture: np.ndarray) -> list[tuple[int, int]]:
    """x, y in whole px of the points that lie in the picture."""
    height, width = picture.shape[:2]
    whole = [(int(x), int(y)) for x, y in points]
    return [(x, y) for x, y in whole if 0 <= x < width and 0 <= y < height]
