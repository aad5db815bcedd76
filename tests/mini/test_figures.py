"""Drawn figures: their keypoints are where their parts are, and what is measured in a video can go wrong."""

from dataclasses import replace

import numpy as np

from mini import measure
from mini.scene import scene
from wan_orchestration.preprocess.keypoints import LEFT_ELBOW, LEFT_WRIST, RIGHT_ELBOW, RIGHT_WRIST


def test_keypoints_are_where_the_parts_are():
    one = scene(1, 33)
    for t in (0, 16, 32):
        pose, frame = one.driving.pose(t, one.size), one.truth(t)
        found = measure.find_parts(frame[None], one.character)[0]
        for joints, limb in (((RIGHT_ELBOW, RIGHT_WRIST), "right_arm"), ((LEFT_ELBOW, LEFT_WRIST), "left_arm")):
            x, y = pose.body[list(joints), :2].mean(0).round().astype(int)
            assert found[y, x] == measure.PARTS.index(limb)
        x0, y0, x1, y1 = one.driving.face_box(t, one.size)
        assert 20 < x1 - x0 < 50 and 20 < y1 - y0 < 50
        eyes, mouth = pose.face[36:48, :2], pose.face[48:, :2]
        assert (eyes[:, 1].max() < mouth[:, 1].min()) and y0 < eyes[:, 1].min() and mouth[:, 1].max() < y1


def test_the_same_seed_draws_the_same():
    np.testing.assert_array_equal(scene(3, 8).truth(7), scene(3, 8).truth(7))
    assert measure.psnr(scene(3, 8).truth(7), scene(4, 8).truth(7)) < 20


def test_what_is_measured_tells_figures_apart():
    one = scene(1, 33)
    moved, other = replace(scene(2, 33), character=one.character), replace(one, character=scene(5, 33).character)
    videos = [np.stack([each.truth(t) for t in each.frames[::8]]) for each in (one, moved, other)]
    assert measure.limb_errors(videos[0], videos[0], one.character).max() == 0
    assert measure.limb_errors(videos[1], videos[0], one.character).mean() > 0.04
    assert measure.wears(videos[0], videos[0], one.character, other.character)
    assert not measure.wears(videos[2], videos[0], one.character, other.character)


def test_amplitudes_are_relative_to_the_truth():
    one = scene(1, 33)
    truth, reference = np.stack([one.truth(t) for t in one.frames[::8]]), one.reference()
    change = truth.astype(float) - reference
    assert abs(measure.amplitude(0.5 * change, change) - 0.5) < 1e-9
    assert abs(measure.limb_amplitude(truth, truth, reference, one.character) - 1) < 1e-9
    assert measure.limb_amplitude(np.broadcast_to(reference, truth.shape), truth, reference, one.character) == 0
