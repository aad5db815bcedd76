"""Layers of the Wan VAE that read and write less memory than diffusers' own, with the same weights and results.

Videos and weights are channels last in memory throughout: a convolution would first copy any other layout.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl_wan import (
    WanCausalConv3d,
    WanDecoder3d,
    WanEncoder3d,
    WanResample,
    WanRMS_norm,
)
from einops import rearrange
from torch import Tensor, nn

from wan_orchestration.engine.diffusers_internals import causal_padding
from wan_orchestration.engine.torch_internals import onednn_convolution, onednn_convolves

SMALLEST_NORM = 1e-12
"""The smallest divisor of `F.normalize`, which diffusers uses here."""
FIRST = object()
"""Cache entry of a layer that doubles frames, after the chunk with the video's first frame. That frame is not doubled,
and the next frames do not depend on it."""


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Parts (n, C, T, H, W) of a video joined in time, channels last in memory.

    `torch.cat` alone loses this layout if a part is empty, expanded, or so thin that its strides fit other layouts too.
    """
    return torch.cat([part.movedim(1, -1) for part in parts], 1).movedim(-1, 1)


class ChannelNorm(WanRMS_norm):
    """Scales each pixel's channels to unit RMS in one pass. diffusers needs four passes."""

    def forward(self, x: Tensor) -> Tensor:
        """(n, C, ...) to the same shape. A channels-last input gives a channels-last output."""
        channels = x.shape[1]
        last = x.movedim(1, -1).float()
        normed = F.rms_norm(last, (channels,), self.gamma.flatten().float(), SMALLEST_NORM**2 / channels)
        return normed.movedim(-1, 1).type_as(x)


class CausalConv(WanCausalConv3d):
    """Pads the picture within the convolution. diffusers copies each video into a larger one first."""

    def forward(self, x: Tensor, cache_x: Tensor | None = None) -> Tensor:
        """(n, C, T, H, W). `cache_x` holds the last frames of the previous chunk; None stands for zeros."""
        frames, rows, columns = causal_padding(self)
        if frames:
            before = [] if cache_x is None else [cache_x]
            missing = frames - sum(part.shape[2] for part in before)
            zeros = x.new_zeros(()).expand(*x.shape[:2], missing, *x.shape[3:])
            x = joined([zeros, *before, x])
        if x.device.type == "cpu" and onednn_convolves(x.dtype):
            return onednn_convolution(x, self.weight, self.bias, [0, rows, columns], self.stride)
        return F.conv3d(x, self.weight, self.bias, self.stride, (0, rows, columns))


class Resample(WanResample):
    """Doubles or halves the picture, and with a mode "...3d" also the number of frames. Its output is channels last.

    diffusers' class loses this layout: it joins frames channels first, and a single frame's strides do not show it.
    """

    def forward(self, x: Tensor, feat_cache: list[Any] | None = None, feat_idx: list[int] | None = None) -> Tensor:
        """A chunk (n, C, T, H, W). The video's first frame stays one frame."""
        assert feat_cache is not None
        assert feat_idx is not None
        index = feat_idx[0]
        before = feat_cache[index] if self.mode.endswith("3d") else None
        if self.mode == "upsample3d":
            if before is None:
                feat_cache[index] = FIRST
                feat_idx[0] += 1
            else:
                feat_cache[index] = None if before is FIRST else before
                pairs = _carried(self.time_conv, x, feat_cache, feat_idx)
                x = rearrange(pairs, "n (two c) t h w -> n (t two) h w c", two=2).contiguous().movedim(-1, 1)
        frames = self.resample(x.transpose(1, 2).flatten(0, 1))
        x = frames.movedim(1, -1).unflatten(0, (len(x), -1)).movedim(-1, 1)
        if self.mode == "downsample3d":
            feat_cache[index] = x[:, :, -1:].clone()
            feat_idx[0] += 1
            if before is not None:
                x = self.time_conv(joined([before, x]))
        return x


class Encoder(WanEncoder3d):
    """An encoder that can skip its first stages for a still video, and run the outermost layers frame by frame.

    The first stages are causal, so their output becomes constant some frames after the last change of the input. They
    are most of the encoder's work, because they see the picture at its full size and all frames.
    """

    still = False
    """Whether to repeat the first stages' output of the previous chunk. Set it only if the previous chunk, the `reach`
    frames before it and the next chunk all repeat one frame."""
    by_frames = False
    """Whether the layers that see the picture at full size take one frame at a time: less memory, the same result."""
    _last: tuple[Tensor, int] | None = None
    """Output of the first stages for the last chunk, and the cache index after them."""

    @property
    def outermost(self) -> int:
        """How many layers of `down_blocks` see the picture at full size, including the one that halves it."""
        return next(i for i, layer in enumerate(self.down_blocks) if hasattr(layer, "mode")) + 1

    @property
    def early(self) -> int:
        """How many layers of `down_blocks` the first stages have: up to the first that halves the number of frames."""
        modes = [getattr(layer, "mode", None) for layer in self.down_blocks]
        return modes.index("downsample3d") + 1

    @property
    def reach(self) -> int:
        """How many earlier frames the first stages' output depends on: two for each causal convolution."""
        layers = (self.conv_in, *self.down_blocks[: self.early])
        convs = [module for layer in layers for module in layer.modules() if isinstance(module, WanCausalConv3d)]
        return sum(2 for conv in convs if conv.kernel_size[0] == 3)

    def forward(self, x: Tensor, feat_cache: list[Any] | None = None, feat_idx: list[int] | None = None) -> Tensor:
        """Encode a chunk (1, 3, T, H, W). `feat_cache` carries each layer's last frames over to the next chunk."""
        assert feat_cache is not None
        assert feat_idx is not None
        if self.still:
            assert self._last is not None
            last, feat_idx[0] = self._last
            x = joined([last[:, :, -1:]] * (x.shape[2] // 2))
        else:
            if self.by_frames:
                x = _by_frames(self._full_size, x, feat_cache, feat_idx)
            else:
                x = self._full_size(x, feat_cache, feat_idx)
            for layer in self.down_blocks[self.outermost : self.early]:
                x = layer(x, feat_cache=feat_cache, feat_idx=feat_idx)
            self._last = x, feat_idx[0]
        for layer in self.down_blocks[self.early :]:
            x = layer(x, feat_cache=feat_cache, feat_idx=feat_idx)
        x = self.mid_block(x, feat_cache=feat_cache, feat_idx=feat_idx)
        return _carried(self.conv_out, self.nonlinearity(self.norm_out(x)), feat_cache, feat_idx)

    def _full_size(self, x: Tensor, feat_cache: list[Any], feat_idx: list[int]) -> Tensor:
        x = _carried(self.conv_in, x, feat_cache, feat_idx)
        for layer in self.down_blocks[: self.outermost]:
            x = layer(x, feat_cache=feat_cache, feat_idx=feat_idx)
        return x

    def forget(self) -> None:
        """Drop what is kept between chunks. Call it at the end of a video."""
        self.still, self._last = False, None


class Decoder(WanDecoder3d):
    """A decoder that can run its last stages, which see the picture at full size, frame by frame."""

    by_frames = False
    """As `Encoder.by_frames`."""

    @property
    def outermost(self) -> int:
        """Index in `up_blocks` of the first block after the last one that doubles the number of frames."""
        last = 0
        for index, block in enumerate(self.up_blocks):
            if any(getattr(module, "mode", None) == "upsample3d" for module in block.modules()):
                last = index
        return last + 1

    def forward(
        self,
        x: Tensor,
        feat_cache: list[Any] | None = None,
        feat_idx: list[int] | None = None,
        first_chunk: bool = False,
    ) -> Tensor:
        """Decode a chunk (1, 16, T, h, w). `feat_cache` carries each layer's last frames over to the next chunk."""
        assert feat_cache is not None
        assert feat_idx is not None
        x = _carried(self.conv_in, x, feat_cache, feat_idx)
        x = self.mid_block(x, feat_cache=feat_cache, feat_idx=feat_idx)
        for block in self.up_blocks[: self.outermost]:
            x = block(x, feat_cache=feat_cache, feat_idx=feat_idx, first_chunk=first_chunk)
        if self.by_frames:
            return _by_frames(self._full_size, x, feat_cache, feat_idx)
        return self._full_size(x, feat_cache, feat_idx)

    def _full_size(self, x: Tensor, feat_cache: list[Any], feat_idx: list[int]) -> Tensor:
        for block in self.up_blocks[self.outermost :]:
            x = block(x, feat_cache=feat_cache, feat_idx=feat_idx)
        return _carried(self.conv_out, self.nonlinearity(self.norm_out(x)), feat_cache, feat_idx)


def _by_frames(
    stages: Callable[[Tensor, list[Any], list[int]], Tensor], x: Tensor, feat_cache: list[Any], feat_idx: list[int]
) -> Tensor:
    """Run causal stages on each frame of (n, C, T, H, W) separately. `feat_cache` connects the frames."""
    start, parts = feat_idx[0], []
    for frame in x.split(1, dim=2):
        feat_idx[0] = start
        parts.append(stages(frame, feat_cache, feat_idx))
    return joined(parts)


def _carried(conv: nn.Module, x: Tensor, feat_cache: list[Any], feat_idx: list[int]) -> Tensor:
    """Run a causal convolution after the last two frames of the previous chunk, and keep this chunk's for the next."""
    index = feat_idx[0]
    before, last = feat_cache[index], x[:, :, -2:].clone()
    if last.shape[2] < 2 and before is not None:
        last = joined([before[:, :, -1:], last])
    x = conv(x, before)
    feat_cache[index] = last
    feat_idx[0] += 1
    return x


def use_own_layers(vae: nn.Module, by_frames: bool = False) -> None:
    """Turn diffusers' layers into the classes above, and store the weights channels last.

    `by_frames` is for devices with little memory, see `Encoder` and `Decoder`.
    """
    for module in vae.modules():
        if type(module) is WanRMS_norm:
            module.__class__ = ChannelNorm
        elif type(module) is WanCausalConv3d:
            module.__class__ = CausalConv
        elif type(module) is WanResample:
            module.__class__ = Resample
        elif type(module) is WanEncoder3d:
            module.__class__ = Encoder
        elif type(module) is WanDecoder3d:
            module.__class__ = Decoder
        elif isinstance(module, nn.SiLU):
            module.inplace = True  # its input is always a norm's output
        if isinstance(module, Encoder | Decoder):
            module.by_frames = by_frames
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            layout = torch.channels_last if isinstance(module, nn.Conv2d) else torch.channels_last_3d
            module.weight.data = module.weight.data.contiguous(memory_format=layout)
