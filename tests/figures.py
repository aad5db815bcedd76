"""A drawn figure that waves and walks, with its keypoints: a driving video without a person in it."""

from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np

from wan_orchestration.preprocess.keypoints import LIMBS, PARTS, Pose
from wan_orchestration.video.writer import write_lossless

SHARED = Path(__file__).parents[1].parent / "shared"

# x, y in units of the figure's height, from the middle of its feet; y upwards.
_STANDING = {
    0: (0, 0.93), 1: (0, 0.81), 2: (-0.11, 0.81), 3: (-0.14, 0.64), 4: (-0.15, 0.48),
    5: (0.11, 0.81), 6: (0.14, 0.64), 7: (0.15, 0.48), 8: (-0.06, 0.5), 9: (-0.06, 0.27), 10: (-0.06, 0.04),
    11: (0.06, 0.5), 12: (0.06, 0.27), 13: (0.06, 0.04), 14: (-0.02, 0.95), 15: (0.02, 0.95),
    16: (-0.05, 0.94), 17: (0.05, 0.94), 18: (0.08, 0.0), 19: (-0.08, 0.0),
}  # fmt: skip


def figure(
    size: tuple[int, int],
    height: float,
    feet: tuple[float, float],
    wave: float = 0.0,
    stretch: dict[int, float] | None = None,
) -> Pose:
    """A figure `height` px tall standing at `feet`, its right arm raised by `wave` radians.

    `stretch` lengthens limbs: index into LIMBS -> factor.
    """
    standing = np.array([_STANDING[joint] for joint in range(20)]) * (1, -1)
    joints = standing.copy()
    for limb, (parent, child) in enumerate(LIMBS):
        reach = (standing[child] - standing[parent]) * (stretch or {}).get(limb, 1.0)
        if child in (3, 4):
            turn = np.array([[np.cos(wave), -np.sin(wave)], [np.sin(wave), np.cos(wave)]])
            reach = turn @ reach
        joints[child] = joints[parent] + reach
    joints = joints * height + feet

    def hand(wrist: np.ndarray) -> np.ndarray:
        fan = np.linspace(-0.5, 0.5, 5)
        points = [wrist] + [
            wrist + step * 0.012 * height * np.array([np.sin(a), np.cos(a)]) for a in fan for step in range(1, 5)
        ]
        return sure(np.array(points))

    angles = np.linspace(0, 2 * np.pi, 68, endpoint=False)
    face = joints[0] + 0.05 * height * np.column_stack([np.cos(angles), np.sin(angles)])
    return Pose(size, sure(joints), hand(joints[7]), hand(joints[4]), sure(face))


def sure(points: np.ndarray, confidence: float = 0.9) -> np.ndarray:
    return np.column_stack([points, np.full(len(points), confidence)])


def picture_of(pose: Pose) -> np.ndarray:
    """(H, W, 3) uint8 RGB."""
    width, height = pose.size
    canvas = np.full((height, width, 3), (90, 120, 150), np.uint8)
    thickness = max(height // 40, 2)
    for parent, child in LIMBS:
        start, end = (tuple(int(v) for v in pose.body[joint, :2]) for joint in (parent, child))
        cv2.line(canvas, start, end, (200, 60, 40), thickness)
    centre = tuple(int(v) for v in pose.body[0, :2])
    cv2.circle(canvas, centre, height // 20, (230, 190, 160), -1)
    return canvas


def walk(frames: int, size: tuple[int, int] = (160, 120)) -> list[Pose]:
    width, height = size
    return [
        figure(size, 0.8 * height, (width * (0.4 + 0.2 * i / max(frames - 1, 1)), 0.9 * height), wave=0.1 * i)
        for i in range(frames)
    ]


def save_keypoints(path: Path, poses: list[Pose], **more: object) -> Path:
    stacks = {part: np.stack([getattr(pose, part) for pose in poses]) for part in PARTS}
    np.savez(path, size=poses[0].size, **stacks, **more)
    return path


def driving(folder: Path, poses: list[Pose], fps: int = 30) -> Path:
    """`driving.mp4` and `keypoints.npz` in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_lossless(folder / "driving.mp4", (picture_of(pose) for pose in poses), Fraction(fps))
    save_keypoints(folder / "keypoints.npz", poses)
    return folder / "driving.mp4"
