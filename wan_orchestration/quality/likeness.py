"""Likeness of pictures by the features of the snapshot's CLIP."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from transformers import CLIPVisionModel

from wan_orchestration.engine.conditioning import encode_picture, letterbox, to_tensor

SIDE = 224


class Likeness:
    """Compares pictures (h, w, 3) uint8 RGB with a reference picture.

    The encoder lies on the CPU. It works on `device`, and returns.

    Features are averaged over each picture, and those of a grey picture are subtracted, because the part that all
    pictures share would make them all alike.
    """

    @torch.no_grad()
    def __init__(self, encoder: CLIPVisionModel, device: torch.device, reference: np.ndarray) -> None:
        self.encoder, self.device = encoder, device
        with self._on_device():
            self._nothing = self._features(np.full((SIDE, SIDE, 3), 127, np.uint8))
            self._target = self._features(reference) - self._nothing

    @torch.no_grad()
    def __call__(self, pictures: Sequence[np.ndarray]) -> float:
        """The mean cosine of the pictures' features and those of the reference picture."""
        with self._on_device():
            features = [self._features(picture) - self._nothing for picture in pictures]
        return float(torch.stack([torch.cosine_similarity(one, self._target, dim=0) for one in features]).mean())

    @torch.no_grad()
    def _features(self, picture: np.ndarray) -> Tensor:
        squared = to_tensor(letterbox(picture, SIDE, SIDE)[None]).to(self.device)
        return encode_picture(squared, self.encoder).float().mean(dim=1)[0]

    @contextmanager
    def _on_device(self) -> Iterator[None]:
        """The encoder's weights are copied to the device. The originals stay, so they are not copied back."""
        held = [(weight, weight.data) for weight in self.encoder.parameters()]
        try:
            nn.Module.to(self.encoder, self.device)
            yield
        finally:
            for weight, data in held:
                weight.data = data
            nn.Module.to(self.encoder, torch.device("cpu"))  # moves its buffers


def likeness(
    encoder: CLIPVisionModel, device: torch.device, pictures: Sequence[np.ndarray], reference: np.ndarray
) -> float:
    """Compares pictures with a reference picture once, see `Likeness`."""
    return Likeness(encoder, device, reference)(pictures)
