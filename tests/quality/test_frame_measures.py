"""What is measured in frames, of good videos and of bad ones made for it."""

import cv2
import numpy as np
from media import moving_frames

from wan_orchestration.quality.frame_measures import FrameMeasures

LENGTHS = [9, 8, 8]


def walking(count: int = 25) -> list[np.ndarray]:
    """A disc that goes slowly over a gradient."""
    ground = moving_frames(1, 64, 96)[0]
    return [cv2.circle(ground.copy(), (20 + 2 * i, 32), 8, (200, 80, 40), -1) for i in range(count)]


def measured(frames: list[np.ndarray], poses: list[np.ndarray] | None = None) -> FrameMeasures:
    measures = FrameMeasures(LENGTHS)
    for frame, pose in zip(frames, poses or walking()):
        measures.add(frame, pose)
    return measures


def test_a_good_video():
    good = measured(walking())
    assert good.frozen == 0
    assert len(good.colour_drift()) == 3 and max(good.colour_drift()) < 2
    assert good.seam()[0] < 1.2


def test_a_frozen_picture():
    frames = walking()
    frames[5:15] = [frames[5]] * 10
    assert measured(frames).frozen == 9
    poses = walking()
    poses[5:15] = [poses[5]] * 10
    assert measured(frames, poses).frozen == 0, "the pose stands still as well"


def test_colours_that_drift():
    frames = [np.clip(frame * np.float32((1, 1, 1 - 0.02 * (i // 8))) + 2 * i, 0, 255).astype(np.uint8)
              for i, frame in enumerate(walking())]  # fmt: skip
    drift = measured(frames).colour_drift()
    assert drift[0] == 0 and 3 < drift[1] < drift[2]


def test_a_jump_between_segments():
    frames = walking()
    frames[17:] = [frame[:, ::-1] for frame in frames[17:]]
    seam, at = measured(frames).seam()
    assert seam > 3 and at == 17
    frames = walking()
    frames[12:] = [frame[:, ::-1] for frame in frames[12:]]
    assert measured(frames).seam()[0] < 1.2, "within a segment it is the motion's"


def test_one_segment_has_no_seam():
    measures = FrameMeasures([25])
    for frame in walking():
        measures.add(frame, frame)
    assert measures.seam() == (0.0, None) and measures.colour_drift() == [0.0]
