"""Keeps the background of a replacement where another character is in it already."""

import cv2
import numpy as np
import torch
from torch import Tensor

from wan_orchestration.engine.conditioning import to_tensor

SOFT_EDGE = 4.0
"""px outside of the mask over which generated pixels fade into the background."""


def keep_background(video: Tensor, background: np.ndarray, mask: np.ndarray) -> Tensor:
    """A generated segment with the background's own pixels outside of the mask.

    Without this, each pass would change the characters of the passes before a little.

    Args:
        video: (3, T, H, W) in [-1, 1].
        background: (T, H, W, 3) uint8 RGB.
        mask: (T, H, W, 3) uint8, white where the character is.
    """
    result = torch.empty_like(video)
    for index, frame in enumerate(video.unbind(1)):
        outside = (mask[index, ..., 0] <= 127).astype(np.uint8)
        distance = torch.from_numpy(cv2.distanceTransform(outside, cv2.DIST_L2, 3))
        share = (1 - (distance / SOFT_EDGE).clamp(0, 1)).to(video)
        kept = to_tensor(background[index : index + 1], video.device)[0, :, 0].to(video)
        result[:, index] = torch.where(share > 0, share * frame + (1 - share) * kept, kept)
    return result
