import numpy as np
import torch

from wan_orchestration.engine import conditioning as cond
from wan_orchestration.families.animate.background import background_known


def test_frames_survive_the_round_trip():
    frames = np.random.default_rng(0).integers(0, 256, (3, 4, 6, 3), dtype=np.uint8)
    assert (cond.to_frames(cond.to_tensor(frames)[0]) == frames).all()


def test_values_that_are_not_colours_become_colours():
    video = torch.tensor([torch.nan, torch.inf, -torch.inf, 1.5]).view(1, 1, 1, 4).repeat(3, 1, 1, 1)
    assert cond.to_frames(video)[0, 0, :, 0].tolist() == [128, 255, 0, 255]
    assert torch.isnan(video).any()


def test_letterbox_truncates_like_the_published_code():
    tall = np.full((120, 50, 3), 200, np.uint8)
    boxed = cond.letterbox(tall, 64, 96)
    columns = np.flatnonzero(boxed.any(axis=(0, 2)))
    assert boxed.shape == (64, 96, 3)
    assert (columns[0], len(columns)) == (35, 26)  # int(64 / 120 * 50) wide, int((96 - 26) / 2) in
    wide = cond.letterbox(np.full((50, 200, 3), 200, np.uint8), 64, 96)
    rows = np.flatnonzero(wide.any(axis=(1, 2)))
    assert (rows[0], len(rows)) == (20, 24)


def test_prompt_is_cleaned():
    assert cond.clean_prompt("  a &amp;amp; b\n\tc ") == "a & b c"


def test_known_pixels_give_the_first_frame_four_channels():
    mask = torch.arange(9.0).view(9, 1, 1)
    channels = cond.known_pixels(mask)[0, :, :, 0, 0]
    assert channels.T.tolist() == [[0, 0, 0, 0], [1, 2, 3, 4], [5, 6, 7, 8]]


def test_background_keeps_grey_and_takes_the_nearest():
    mask = np.zeros((1, 16, 16, 3), np.uint8)
    mask[0, 8:, :, 0] = 64
    mask[0, :8, 8:, 0] = 255
    known = background_known(mask)
    assert known.shape == (1, 2, 2)
    assert torch.allclose(known[0], torch.tensor([[1.0, 0.0], [1 - 64 / 255, 1 - 64 / 255]]))
