"""Measures of clips: frames with a skeleton, a face and a mask, and the largest jump of the skeleton."""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np

from wan_orchestration.jobs.clips import JOINTS, Clips
from wan_orchestration.video.reader import iter_frames

DRAWN = 24
"""A pixel of the pose clip at least this bright is part of the skeleton. Encoded black may be brighter than 0."""
FACE_DEVIATION = 4.0
"""A face frame whose values have a smaller standard deviation (of 255) shows no face."""
MASKED = 127
"""A brighter pixel of the mask clip belongs to the mask."""


@dataclass(frozen=True)
class ClipsQuality:
    """Shares are of the frames, in 0..1."""

    skeleton: float
    """Share with a skeleton."""
    face: float
    """Share with a face."""
    largest_jump: float
    """Of the skeleton's centre from one frame to the next, as a fraction of the frame's height."""
    jump_frame: int | None
    empty_masks: float | None
    """Share with an empty mask; None in animate mode."""
    confidence: float | None
    """Mean confidence of the drawn joints; None without `src_pose.npz`."""


def measure_clips(clips: Clips) -> ClipsQuality:
    """Measure clips in one pass over each.

    Raises:
        BadInput: a clip cannot be decoded.
    """
    centres = [_centre(frame) for frame in iter_frames(clips.pose.path)]
    steps = [
        0.0 if one is None or other is None else float(np.linalg.norm(other - one)) / clips.pose.height
        for one, other in pairwise(centres)
    ]
    worst = int(np.argmax(steps)) + 1 if steps and max(steps) > 0 else None
    faces = [frame.std() >= FACE_DEVIATION for frame in iter_frames(clips.face.path)]
    masks = [frame.max() > MASKED for frame in iter_frames(clips.mask.path)] if clips.mask else None
    return ClipsQuality(
        skeleton=float(np.mean([centre is not None for centre in centres])),
        face=float(np.mean(faces)),
        largest_jump=round(max(steps, default=0.0), 4),
        jump_frame=worst,
        empty_masks=None if masks is None else 1 - float(np.mean(masks)),
        confidence=_confidence(clips.folder / JOINTS),
    )


def drawn_pixels(frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """y and x of the pixels that show the skeleton in a pose frame (H, W, 3) uint8."""
    # Several times faster than frame.max(axis=2).
    red, green, blue = cv2.split(frame)
    y, x = np.nonzero(cv2.max(cv2.max(red, green), blue) >= DRAWN)
    return y, x


def _centre(frame: np.ndarray) -> np.ndarray | None:
    y, x = drawn_pixels(frame)
    return np.array([x.mean(), y.mean()]) if len(x) else None


def _confidence(joints: Path) -> float | None:
    if not joints.is_file():
        return None
    body = np.load(joints)["body"]
    drawn = body[..., 2] > 0
    return round(float(body[..., 2][drawn].mean()), 4) if drawn.any() else 0.0
