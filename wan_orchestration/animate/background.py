"""Keeps the background of a replacement where another character is in it already."""

import cv2
import numpy as np
import torch
from torch import Tensor

from wan_orchestration.animate.conditioning import to_tensor

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
    shares = [cv2.distanceTransform((frame[..., 0] <= 127).astype(np.uint8), cv2.DIST_L2, 3) for frame in mask]
    share = torch.from_numpy(1 - np.clip(np.stack(shares) / SOFT_EDGE, 0, 1)).to(video)
    kept = to_tensor(background, video.device)[0].to(video.dtype)
    return torch.where(share > 0, share * video + (1 - share) * kept, kept)
