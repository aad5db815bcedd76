"""The background of a replacement: which pixels are known, and keeping it where another character is in it already."""

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from wan_orchestration.engine.conditioning import to_tensor
from wan_orchestration.engine.vae.model import STRIDE

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


def background_known(mask: np.ndarray) -> Tensor:
    """Share of background, (T, H / 8, W / 8), from a mask (T, H, W, 3) uint8 whose red channel is 255 on the person.

    As in the published code, the mask is resized by nearest neighbour and not binarised.
    """
    height, width = mask.shape[1] // STRIDE, mask.shape[2] // STRIDE
    share = 1 - torch.from_numpy(mask[:, None, :, :, 0]).float() / 255
    return F.interpolate(share, size=(height, width), mode="nearest")[:, 0]
