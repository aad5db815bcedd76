"""Layers of the Wan VAE that pass over memory less often than diffusers' own, with the same weights and results.

Videos are channels last in memory throughout, as the convolutions' weights are: a convolution copies any other first.
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

SMALLEST_NORM = 1e-12
"""What `F.normalize`, which diffusers uses here, divides by at least."""
FIRST = object()
"""Carried over from the video's first frame where frames are doubled: it is not, and the next do not depend on it."""


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Parts (n, C, T, H, W) of a video joined in time, channels last in memory.

    `torch.cat` alone leaves that order if any part is empty, expanded or so thin that its strides fit other layouts.
    """
    return torch.cat([part.movedim(1, -1) for part in parts], 1).movedim(-1, 1)


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
            before = [] if cache_x is None else [cache_x]
            missing = frames - sum(part.shape[2] for part in before)
            zeros = x.new_zeros(()).expand(*x.shape[:2], missing, *x.shape[3:])
            x = joined([zeros, *before, x])
        if x.device.type == "cpu" and _onednn_takes(x.dtype):
            # Where F.conv3d arrives too, but for short chunks of few channels: there it takes a far slower way.
            padding = [0, rows, columns]
            return torch.ops.aten.mkldnn_convolution(x, self.weight, self.bias, padding, self.stride, [1, 1, 1], 1)
        return F.conv3d(x, self.weight, self.bias, self.stride, (0, rows, columns))


class Resample(WanResample):
    """Makes the picture, and with mode "...3d" the frames, twice or half as many, and keeps it channels last.

    Diffusers' own joins frames channels first, and gives a single one strides that do not tell its layout.
    """

    def forward(self, x: Tensor, feat_cache: list[Any] | None = None, feat_idx: list[int] | None = None) -> Tensor:
        """A chunk (n, C, T, H, W), whose frames are as many as before where it is the video's first frame."""
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
    """Can leave out layers of the first stages while a video stands still, and pass the outermost ones frame by frame.

    They are causal, so that some frames after the last change their output no longer changes either. They make up most
    of the encoder's work, because they see the picture at its full size and all of its frames.
    """

    still = False
    """Set for a chunk of a still video whose predecessor's first stages saw nothing but the same picture."""
    by_frames = False
    """Whether the layers that see the picture at its full size take a frame at a time: less memory, the same result."""
    _last: tuple[Tensor, int] | None = None

    @property
    def outermost(self) -> int:
        """Layers of `down_blocks` that see the picture at its full size, and what makes it smaller."""
        return next(i for i, layer in enumerate(self.down_blocks) if hasattr(layer, "mode")) + 1

    @property
    def early(self) -> int:
        """Layers of `down_blocks` before and with the first that halves the number of frames."""
        modes = [getattr(layer, "mode", None) for layer in self.down_blocks]
        return modes.index("downsample3d") + 1

    @property
    def reach(self) -> int:
        """Frames before its own that the first stages' output depends on: two for each causal convolution."""
        layers = (self.conv_in, *self.down_blocks[: self.early])
        convs = [module for layer in layers for module in layer.modules() if isinstance(module, WanCausalConv3d)]
        return sum(2 for conv in convs if conv.kernel_size[0] == 3)

    def forward(self, x: Tensor, feat_cache: list[Any] | None = None, feat_idx: list[int] | None = None) -> Tensor:
        """A chunk (1, 3, T, H, W) of a video; the last frames of each layer are carried over in `feat_cache`."""
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
        """At the end of a video."""
        self.still, self._last = False, None


class Decoder(WanDecoder3d):
    """Can pass its last stages, which see the picture at its full size, frame by frame."""

    by_frames = False
    """As `Encoder.by_frames`."""

    @property
    def outermost(self) -> int:
        """The first of `up_blocks` after the last that doubles the number of frames."""
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
        """A chunk (1, 16, T, h, w) of latents; the last frames of each layer are carried over in `feat_cache`."""
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


def _onednn_takes(dtype: torch.dtype) -> bool:
    """Whether this CPU has oneDNN's convolution in a precision: that in bfloat16 wants AVX-512 or the like."""
    if not torch.backends.mkldnn.is_available():
        return False
    return dtype != torch.bfloat16 or torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _by_frames(
    stages: Callable[[Tensor, list[Any], list[int]], Tensor], x: Tensor, feat_cache: list[Any], feat_idx: list[int]
) -> Tensor:
    """Run causal stages on each frame of (n, C, T, H, W) by itself; what they carry over joins the frames."""
    start, parts = feat_idx[0], []
    for frame in x.split(1, dim=2):
        feat_idx[0] = start
        parts.append(stages(frame, feat_cache, feat_idx))
    return joined(parts)


def _carried(conv: nn.Module, x: Tensor, feat_cache: list[Any], feat_idx: list[int]) -> Tensor:
    """Run a causal convolution after the frames of the chunk before, and leave its last two for the next."""
    index = feat_idx[0]
    before, last = feat_cache[index], x[:, :, -2:].clone()
    if last.shape[2] < 2 and before is not None:
        last = joined([before[:, :, -1:], last])
    x = conv(x, before)
    feat_cache[index] = last
    feat_idx[0] += 1
    return x


def lighten(vae: nn.Module, by_frames: bool = False) -> None:
    """Have a VAE's layers work as those above, and keep its weights as convolutions read them fastest.

    `by_frames` is for devices of little memory, see `Encoder` and `Decoder`.
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
