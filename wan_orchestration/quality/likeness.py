"""Likeness of pictures by the features of the snapshot's CLIP."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from transformers import CLIPVisionModel

from wan_orchestration.animate.conditioning import encode_reference, letterbox, to_tensor

SIDE = 224


@torch.no_grad()
def likeness(
    encoder: CLIPVisionModel, device: torch.device, pictures: Sequence[np.ndarray], reference: np.ndarray
) -> float:
    """Mean cosine between the features of pictures (h, w, 3) uint8 RGB and of a reference picture.

    Features are averaged over each picture, and those of a grey picture are subtracted, because the part that all
    pictures share would make them all alike. The encoder works on `device` and returns to the CPU.
    """
    nn.Module.to(encoder, device)

    def features(picture: np.ndarray) -> Tensor:
        squared = to_tensor(letterbox(picture, SIDE, SIDE)[None]).to(device)
        return encode_reference(squared, encoder).float().mean(dim=1)[0]

    nothing = features(np.full((SIDE, SIDE, 3), 127, np.uint8))
    target = features(reference) - nothing
    cosines = [torch.cosine_similarity(features(picture) - nothing, target, dim=0) for picture in pictures]
    nn.Module.to(encoder, torch.device("cpu"))
    return float(torch.stack(cosines).mean())
