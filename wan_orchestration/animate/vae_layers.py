"""Layers of the Wan VAE that pass over memory less often than diffusers' own, with the same weights and results."""

from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, WanRMS_norm
from torch import Tensor, nn

SMALLEST_NORM = 1e-12
"""What `F.normalize`, which diffusers uses here, divides by at least."""


class ChannelNorm(WanRMS_norm):
    """Scales each pixel's channels to unit RMS in one pass; diffusers' takes four."""

    def forward(self, x: Tensor) -> Tensor:
        """(n, C, ...) to the same shape and, where it is channels last in memory, the same layout."""
        channels = x.shape[1]
        last = x.movedim(1, -1).float()
        normed = F.rms_norm(last, (channels,), self.gamma.flatten().float(), SMALLEST_NORM**2 / channels)
        return normed.movedim(-1, 1).type_as(x)


class CausalConv(WanCausalConv3d):
    """Pads the picture within the convolution; diffusers' copies each video into a larger one first."""

    def forward(self, x: Tensor, cache_x: Tensor | None = None) -> Tensor:
        """(n, C, T, H, W); `cache_x` are the last frames of the chunk before, of which there were zeros at first."""
        padding: Any = self._padding
        columns, _, rows, _, frames, _ = padding
        if frames:
            before = x[:, :, :0] if cache_x is None else cache_x
            zeros = x.new_zeros(*x.shape[:2], frames - before.shape[2], *x.shape[3:])
            x = torch.cat([zeros, before, x], dim=2)
        return F.conv3d(x, self.weight, self.bias, self.stride, (0, rows, columns))


def lighten(vae: nn.Module) -> None:
    """Have a VAE's layers work as those above, and keep its weights as convolutions read them fastest."""
    for module in vae.modules():
        if type(module) is WanRMS_norm:
            module.__class__ = ChannelNorm
        elif type(module) is WanCausalConv3d:
            module.__class__ = CausalConv
        elif isinstance(module, nn.SiLU):
            module.inplace = True  # its input is always a norm's output
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            layout = torch.channels_last if isinstance(module, nn.Conv2d) else torch.channels_last_3d
            module.weight.data = module.weight.data.contiguous(memory_format=layout)
