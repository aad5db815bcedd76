"""A linear codec that an `AutoencoderKLWan` encoder computes exactly, and the training form of its decoder.

The codec takes blocks of 4 frames by 8x8 px; the first frame counts as four equal frames. The best 16 numbers that a
linear map can give for a block are its principal components. The encoder's convolutions can be set to compute them:
strided convolutions gather pixels and pairs of frames, residual branches add nothing, and the only nonlinearity, before
the last convolution, cancels because silu(a) - silu(-a) = a. So the latent space is known before training, the
transformer and the decoder can be trained at the same time, and a block's latents depend on no other block.

The decoder is trained with convolutions that see only one latent frame (the last tap in time). Its other taps are zero.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan, WanResidualBlock
from einops import rearrange
from torch import Tensor, nn

LATENTS = 16
BLOCK = 8
MEANS, CHANGES = 22, 10
"""Channels for the mean of two frames, and for their difference: the 32 channels of a quarter-size frame."""
STEADY = 500.0
"""A constant channel. With it the norm before the last convolution is constant too, within 0.1 %."""


@dataclass
class Codec:
    """Bases of the nested linear map: 2x2 px to 12 channels, 4x4 px to 22, two frames to 32, 8x8 px to 128, four frames
    to 16."""

    means: Tensor
    """(22, 48), for 4x4 px."""
    changes: Tensor
    """(10, 22), for the difference of two frames."""
    first: Tensor
    """(16, 128), for the first two of four frames. Together with `second`, its results are whitened."""
    second: Tensor
    bias: Tensor
    """(16,)"""
    weight: Tensor
    """(16, 768): the whole map, for blocks (4, 3, 8, 8)."""

    @classmethod
    def fit(cls, videos: Iterable[tuple[Tensor, float]]) -> Self:
        """Principal components of videos (T, 3, H, W) in [-1, 1], T = 4n + 1, each with its weight.

        Latents are whitened over the videos of weight 1.
        """
        videos = list(videos)
        pixels = [(_gather(video), weight) for video, weight in videos]
        means = _components(((_rows(p), w) for p, w in pixels), MEANS)
        projected = [(torch.einsum("km,tmhw->tkhw", means, p), w) for p, w in pixels]
        changes = _components(((_rows((p[2::2] - p[1:-1:2]) / 2), w) for p, w in projected), CHANGES, centred=False)
        pairs = [(torch.cat([_pairs(p, changes)[0], _pairs(p, changes)[1]], 1), w) for p, w in projected]
        fours = [(_rows(p), w) for p, w in pairs]
        basis = _components(fours, LATENTS)
        true = torch.cat([rows for rows, weight in fours if weight == 1.0])
        centre, spread = (true @ basis.T).mean(0), (true @ basis.T).std(0)
        first, second = (basis / spread[:, None]).chunk(2, dim=1)
        codec = cls(means, changes, first, second, -centre / spread, torch.zeros(0))
        unit = torch.eye(4 * 3 * BLOCK * BLOCK).view(-1, 4, 3, BLOCK, BLOCK)
        still = torch.zeros(len(unit), 1, 3, BLOCK, BLOCK)
        features = [codec._features(video) for video in torch.cat([still, unit], 1)]
        codec.weight = torch.stack([first @ f[1, :, 0, 0] + second @ f[2, :, 0, 0] for f in features], 1)
        return codec

    def _features(self, video: Tensor) -> Tensor:
        """(2n + 1, 128, H / 8, W / 8) of a video (4n + 1, 3, H, W)."""
        p = torch.einsum("km,tmhw->tkhw", self.means, _gather(video))
        one, two = _pairs(p, self.changes)
        return torch.cat([one[:1], torch.stack([one, two], 1).flatten(0, 1)[2:]])

    def encode(self, video: Tensor) -> Tensor:
        """Normalised latents (16, n + 1, H / 8, W / 8) of a video (3, 4n + 1, H, W) in [-1, 1]."""
        held = torch.cat([video[:, :1].expand(-1, 4, -1, -1), video[:, 1:]], 1)
        blocks = rearrange(held, "c (n t) (h y) (w x) -> n h w (t c y x)", t=4, y=BLOCK, x=BLOCK)
        return rearrange(blocks @ self.weight.T + self.bias, "n h w k -> k n h w")

    @torch.no_grad()
    def install(self, vae: AutoencoderKLWan) -> None:
        """Make the VAE's encoder compute `encode`, and its decoder accept the same latents."""
        silence(vae.encoder)
        config: Any = vae.config
        mean, std = torch.tensor(config.latents_mean), torch.tensor(config.latents_std)
        conv = vae.encoder.conv_in
        _clear(conv)
        conv.weight[:3, :, -1, 1, 1] = torch.eye(3)
        down = [layer for layer in vae.encoder.down_blocks if not isinstance(layer, WanResidualBlock)]
        for layer in down:
            _clear(layer.resample[1])
        _gathering(down[0].resample[1], torch.eye(12), 3)
        _gathering(down[1].resample[1], self.means, 12)
        pair = down[1].time_conv
        _clear(pair)
        half = torch.eye(MEANS) / 2
        pair.weight[:MEANS, :MEANS, 1, 0, 0] = pair.weight[:MEANS, :MEANS, 2, 0, 0] = half
        pair.weight[MEANS:, :MEANS, 1, 0, 0] = -self.changes / 2
        pair.weight[MEANS:, :MEANS, 2, 0, 0] = self.changes / 2
        # Channels: the latents of a still frame, their negatives, the difference between first and second frame of a
        # pair, and a constant.
        still, place, k = self.first + self.second, self.first - self.second, LATENTS
        last = down[2].resample[1]
        _gathering(last, torch.cat([still, -still, place]), 32)
        last.bias[:k], last.bias[k : 2 * k], last.bias[3 * k] = self.bias, -self.bias, STEADY
        pair = down[2].time_conv
        _clear(pair)
        eye = torch.eye(k) / 2
        for tap, sign in ((1, 1), (2, -1)):
            for row, way in ((0, 1), (k, -1)):
                pair.weight[row : row + k, row : row + k, tap, 0, 0] = eye
                pair.weight[row : row + k, 2 * k : 3 * k, tap, 0, 0] = eye * sign * way
        pair.bias[3 * k] = STEADY
        norm = vae.encoder.norm_out
        norm.gamma.zero_()
        norm.gamma[: 2 * k] = STEADY / norm.scale
        out = vae.encoder.conv_out
        _clear(out)
        out.weight[:k, :k, -1, 1, 1] = torch.diag(std)
        out.weight[:k, k : 2 * k, -1, 1, 1] = -torch.diag(std)
        out.bias[:k], out.bias[k:] = mean, -10.0
        _clear(vae.quant_conv)
        vae.quant_conv.weight[:, :, 0, 0, 0] = torch.eye(2 * k)
        _clear(vae.post_quant_conv)
        vae.post_quant_conv.weight[:, :, 0, 0, 0] = torch.diag(1 / std)
        vae.post_quant_conv.bias.copy_(-mean / std)


@torch.no_grad()
def silence(part: nn.Module) -> None:
    """Make residual blocks return their input, and attention add nothing."""
    for name, module in part.named_modules():
        if isinstance(module, WanResidualBlock):
            _clear(module.conv2)
            if isinstance(module.conv_shortcut, nn.Conv3d):
                _clear(module.conv_shortcut)
                wide = min(module.conv_shortcut.weight.shape[:2])
                module.conv_shortcut.weight[:wide, :wide, 0, 0, 0] = torch.eye(wide)
        elif name.endswith("attentions.0"):
            _clear(module.proj)


@torch.no_grad()
def prepare_decoder(vae: AutoencoderKLWan) -> None:
    """Prepare a decoder for training with `decode`: no attention, and only the last tap in time."""
    for name, module in vae.decoder.named_modules():
        if name.endswith("attentions.0"):
            _clear(module.proj)
        elif isinstance(module, nn.Conv3d):
            module.weight[:, :, :-1] = 0
            if module.kernel_size[1] > 1:
                nn.init.kaiming_normal_(module.weight[:, :, -1], nonlinearity="linear")
        if isinstance(module, WanResidualBlock):
            module.conv2.weight *= 0.2


def decode(vae: AutoencoderKLWan, latents: Tensor, still: bool) -> Tensor:
    """Pictures (n, 4, 3, H, W), or (n, 1, ...) of first frames, from single latent frames (n, 16, H / 8, W / 8).

    The same as the VAE's own decoder gives for such normalised latents, but not clamped and without the taps in time
    that `prepare_decoder` has cleared.
    """
    decoder = vae.decoder
    x = _conv(decoder.conv_in, latents.contiguous(memory_format=torch.channels_last))
    for block in decoder.mid_block.resnets:
        x = _residual(block, x)
    frames = 1
    for up in decoder.up_blocks:
        for block in up.resnets:
            x = _residual(block, x)
        if up.upsamplers is not None:
            resample = up.upsamplers[0]
            if resample.mode == "upsample3d" and not still:
                x = rearrange(_conv(resample.time_conv, x), "n (two c) h w -> (n two) c h w", two=2)
                frames *= 2
            x = resample.resample[1](F.interpolate(x, scale_factor=2.0, mode="nearest"))
    x = _conv(decoder.conv_out, F.silu(_norm(decoder.norm_out, x)))
    return rearrange(x, "(n t) c h w -> n t c h w", t=frames)


def _residual(block: WanResidualBlock, x: Tensor) -> Tensor:
    shortcut = _conv(block.conv_shortcut, x) if isinstance(block.conv_shortcut, nn.Conv3d) else x
    x = _conv(block.conv1, F.silu(_norm(block.norm1, x)))
    return shortcut + _conv(block.conv2, F.silu(_norm(block.norm2, x)))


def _conv(layer: nn.Conv3d, x: Tensor) -> Tensor:
    return F.conv2d(x, layer.weight[:, :, -1], layer.bias, padding=layer.kernel_size[1] // 2)


def _norm(norm: Any, x: Tensor) -> Tensor:
    length = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float32).clamp_min(1e-12)
    return x * (norm.scale / length).to(x.dtype) * norm.gamma[..., 0].to(x.dtype)


def _gather(video: Tensor) -> Tensor:
    """(T, 48, H / 4, W / 4) of a video (T, 3, H, W), in the order of two strided convolutions."""
    twice = rearrange(video, "t c (h a) (w b) -> t (a b c) h w", a=2, b=2)
    return rearrange(twice, "t c (h a) (w b) -> t (a b c) h w", a=2, b=2)


def _pairs(p: Tensor, changes: Tensor) -> tuple[Tensor, Tensor]:
    """Features (n + 1, 128, h / 2, w / 2) of the first and second pair of each four frames, from (4n + 1, 22, h, w)."""
    one, two = p[1::2], p[2::2]
    moving = torch.cat([(one + two) / 2, torch.einsum("km,tmhw->tkhw", changes, (two - one) / 2)], 1)
    still = torch.cat([p[:1], torch.zeros_like(p[:1, :CHANGES])], 1)
    every = rearrange(torch.cat([still, still, moving]), "t c (h a) (w b) -> t (a b c) h w", a=2, b=2)
    return every[::2], every[1::2]


def _rows(x: Tensor) -> Tensor:
    return rearrange(x, "t c h w -> (t h w) c")


def _components(parts: Iterable[tuple[Tensor, float]], count: int, centred: bool = True) -> Tensor:
    """(count, n): the directions of greatest variance of weighted rows."""
    parts = list(parts)
    total = sum(weight * len(rows) for rows, weight in parts)
    second = sum(weight * (rows.double().T @ rows.double()) for rows, weight in parts) / total
    mean = sum(weight * rows.double().sum(0) for rows, weight in parts) / total
    if centred:
        second = second - torch.outer(mean, mean)
    return torch.linalg.eigh(second).eigenvectors.flip(1).T[:count].float().contiguous()


def _gathering(conv: nn.Conv2d, weight: Tensor, channels: int) -> None:
    """Make a strided convolution apply `weight` (out, 4 * channels) to 2x2 px."""
    taps = rearrange(weight, "k (a b c) -> k c a b", a=2, b=2, c=channels)
    conv.weight[: len(weight), :channels, :2, :2] = taps


def _clear(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        parameter.zero_()
