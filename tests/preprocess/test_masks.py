import json
from fractions import Fraction

import numpy as np
import pytest
from figures import figure

from wan_orchestration.errors import BadInput
from wan_orchestration.preprocess.keypoints import Pose
from wan_orchestration.preprocess.masks import MaskFile, box_mask, grow_mask
from wan_orchestration.video.writer import write_lossless


def test_grown_masks_are_the_published_ones(golden):
    masks = np.load(golden / "mask/masks.npz")
    compared = 0
    for row in json.loads((golden / "mask/cases.json").read_text()):
        mask = masks[f"{row['mask']}/mask"]
        grown = grow_mask(mask, row["iterations"], row["k"], (row["w_len"], row["h_len"]))
        if row["error"]:
            # The published tools stop here: the mask is empty, or a cell would be smaller than a pixel.
            assert grown.any() == mask.any()
        else:
            assert np.array_equal(grown, masks[f"{row['key']}/aug"]), row["key"]
            compared += 1
    assert compared > 25


def test_zero_iterations_leave_the_mask_unchanged():
    mask = np.eye(20, dtype=np.uint8)
    assert grow_mask(mask, 0, 7, (1, 1)) is mask


def test_the_box_covers_the_person():
    pose = figure((160, 120), 90, (80, 110))
    mask = box_mask(pose)
    for x, y, _ in pose.body:
        assert mask[int(y), int(x)] == 1
    assert 0 < mask.mean() < 0.6
    assert not box_mask(Pose.empty((160, 120))).any()


def test_a_mask_video_is_read_by_frame_number_and_letterboxed(tmp_path):
    frames = [np.zeros((60, 80), np.uint8) for _ in range(4)]
    for i, frame in enumerate(frames):
        frame[:, i * 20 : i * 20 + 20] = 255
    write_lossless(tmp_path / "mask.mp4", frames, Fraction(30), "gray")
    masks = MaskFile(tmp_path / "mask.mp4", 4, 4 / 30)
    for i in range(4):
        mask = masks(i, i / 30, (160, 120))
        assert mask.shape == (120, 160) and set(np.unique(mask)) == {0, 1}
        assert np.flatnonzero(mask.any(axis=0)).tolist() == list(range(i * 40, i * 40 + 40))
    masks.close()
    with pytest.raises(BadInput, match=r"mask\.mp4: found 4 frames"):
        MaskFile(tmp_path / "mask.mp4", 90, 3.0)
