"""Draws the skeleton picture that the model was trained on: coloured limbs and joints, blue-dotted hands, no face.

The drawing equals the published one pixel by pixel, because the model has learnt its colours, widths and order.
"""

import colorsys
import math

import cv2
import numpy as np

from wan_orchestration.preprocess.keypoints import CONFIDENT, LIMBS, Pose

_COLOURS = (
    (255, 0, 0), (255, 85, 0), (255, 170, 0), (255, 255, 0), (170, 255, 0), (85, 255, 0), (0, 255, 0),
    (0, 255, 85), (0, 255, 170), (0, 255, 255), (0, 170, 255), (0, 85, 255), (0, 0, 255), (85, 0, 255),
    (170, 0, 255), (255, 0, 255), (255, 0, 170), (255, 0, 85), (200, 200, 0), (100, 100, 0),
)  # fmt: skip
_FINGERS = tuple(
    (0 if step == 0 else 4 * finger + step, 4 * finger + step + 1) for finger in range(5) for step in range(4)
)
_FINGER_COLOURS = tuple(
    tuple(channel * 255 for channel in colorsys.hsv_to_rgb(edge / len(_FINGERS), 1, 1)) for edge in range(len(_FINGERS))
)
_HAND_POINT = (0, 0, 255)


def draw_skeleton(canvas: np.ndarray, pose: Pose) -> np.ndarray:
    """Draws `pose` on `canvas`, (H, W, 3) uint8 RGB, in place, and returns it."""
    stroke = int(min(canvas.shape[:2]) / 200)
    body_width = max(stroke - 1, 1)
    draw_body(canvas, pose.body, body_width)
    for hand in (pose.left_hand, pose.right_hand):
        draw_hand(canvas, hand, max(body_width // 2, 1))
    return canvas


def draw_body(canvas: np.ndarray, joints: np.ndarray, width: int) -> None:
    """Draws limbs, then joints, of (20, 3) `joints`. `width` is half a limb's thickness and a joint's radius, px."""
    drawn = joints[:, 2] >= CONFIDENT
    for (start, end), colour in zip(LIMBS, _COLOURS):
        if not (drawn[start] and drawn[end]):
            continue
        (x0, y0), (x1, y1) = joints[start, :2], joints[end, :2]
        outline = cv2.ellipse2Poly(
            (int((x0 + x1) / 2), int((y0 + y1) / 2)),
            (int(math.hypot(x0 - x1, y0 - y1) / 2), width),
            int(math.degrees(math.atan2(y0 - y1, x0 - x1))),
            0,
            360,
            1,
        )
        cv2.fillConvexPoly(canvas, np.asarray(outline), tuple(int(channel * 0.6) for channel in colour))
    for joint, colour in enumerate(_COLOURS):
        if drawn[joint]:
            cv2.circle(canvas, (int(joints[joint, 0]), int(joints[joint, 1])), width, colour, thickness=-1)


def draw_hand(canvas: np.ndarray, points: np.ndarray, width: int) -> None:
    """Draws fingers, then points, of a (21, 3) hand. `width` is a line's thickness and a point's radius, px."""
    # A coordinate that truncates to 0 counts as missing, because estimators write 0 for missing points.
    drawn = [
        (int(x), int(y)) if confidence >= CONFIDENT and int(x) >= 1 and int(y) >= 1 else None
        for x, y, confidence in points
    ]
    for (start, end), colour in zip(_FINGERS, _FINGER_COLOURS):
        if (tail := drawn[start]) and (tip := drawn[end]):
            cv2.line(canvas, tail, tip, colour, thickness=width)
    for point in drawn:
        if point:
            cv2.circle(canvas, point, width, _HAND_POINT, thickness=-1)
