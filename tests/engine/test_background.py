import numpy as np
import torch

from wan_orchestration.engine.conditioning import to_frames
from wan_orchestration.families.animate.background import keep_background


def test_pixels_outside_of_the_mask_are_the_backgrounds_own():
    background = np.random.default_rng(0).integers(0, 256, (2, 24, 32, 3), np.uint8)
    mask = np.zeros_like(background)
    mask[:, :, 16:] = 255
    background[mask > 0] = 0
    made = to_frames(keep_background(torch.ones(3, 2, 24, 32), background, mask))
    assert (made[:, :, 16:] == 255).all()
    assert np.array_equal(made[:, :, :12], background[:, :, :12])
    between = made[:, :, 12:16].mean(axis=(0, 1, 3))
    assert (np.diff(between) > 0).all(), "they fade into each other"
