import numpy as np
from figures import walk

from wan_orchestration.preprocess.faces import face_boxes
from wan_orchestration.preprocess.keypoints import PARTS, absent
from wan_orchestration.preprocess.motion import Motion, describe_frames, stretches


def walked(count: int, missing: set[int] = frozenset(), part: str | None = None) -> Motion:
    """A walk in which the person or one part is missing in some frames."""
    poses = [None if part is None and t in missing else pose for t, pose in enumerate(walk(count))]
    motion = Motion.from_poses((160, 120), poses)
    if part is not None:
        getattr(motion, part)[sorted(missing)] = absent(PARTS[part])
    return motion


def test_only_short_gaps_are_filled():
    motion = walked(40, {5, 6, 7, *range(20, 30)})
    motion.fill_gaps(3)
    assert motion.found("body").tolist() == [t not in range(20, 30) for t in range(40)]
    assert np.allclose(motion.body[6], walked(40).body[6], atol=0.5)
    assert np.isnan(motion.body[22][:, :2]).all()


def test_gaps_at_the_ends_are_not_filled():
    motion = walked(10, {0, 9})
    motion.fill_gaps(5)
    assert not motion.found("body")[0] and not motion.found("body")[9]


def test_each_part_is_filled_separately():
    motion = walked(10, {4}, "left_hand")
    motion.fill_gaps(2)
    assert motion.found("left_hand").all()


def test_smoothing_removes_jitter_and_keeps_a_steady_walk():
    rng = np.random.default_rng(0)
    steady, shaken = walked(60), walked(60)
    shaken.body[..., :2] += rng.normal(0, 1, shaken.body[..., :2].shape).astype(np.float32)
    shaken.smooth(1.0)
    steady.smooth(1.0)
    assert np.abs(shaken.body - walked(60).body)[..., :2].std() < 0.65
    assert np.allclose(steady.body[5:-5], walked(60).body[5:-5], atol=0.3)


def test_smoothing_keeps_missing_points_missing():
    motion = walked(20, {8, 9})
    motion.smooth(1.0)
    assert np.isnan(motion.body[8][:, :2]).all() and motion.found("body").sum() == 18
    assert np.isfinite(motion.body[[7, 10]]).all()


def test_every_frame_has_a_face_box_inside_the_picture():
    motion = walked(20, {0, 1, 7, 8, 19}, "face")
    motion.face[12, :, 0] += 500
    boxes, missing = face_boxes(motion)
    assert np.flatnonzero(missing).tolist() == [0, 1, 7, 8, 12, 19]
    for x0, y0, x1, y1 in boxes:
        assert 0 <= x0 < x1 <= 160 and 0 <= y0 < y1 <= 120
    assert boxes[0] == boxes[1] == boxes[2] and boxes[19] == boxes[18]
    assert boxes[6][0] <= boxes[7][0] <= boxes[8][0] <= boxes[9][0]


def test_without_any_face_there_are_no_boxes():
    boxes, missing = face_boxes(walked(5, set(range(5)), "face"))
    assert boxes is None and missing.all()


def test_frames_are_described_as_ranges():
    assert stretches(np.array([True, True, False, True])) == [(0, 2), (3, 4)]
    assert describe_frames([0, 1, 2, 7, 9, 10]) == "0-2, 7, 9-10"
    assert describe_frames(list(range(0, 40, 2)), most=2) == "0, 2 and 18 more stretches"
