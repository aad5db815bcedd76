"""The causal video VAE. It takes as many frames at a time as a memory budget allows; ranks share its rows."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan, WanCausalConv3d
from diffusers.models.autoencoders.vae import DecoderOutput
from torch import Tensor, nn

from wan_orchestration.engine.parallel.ranks import Ranks
from wan_orchestration.engine.vae.bands import in_bands
from wan_orchestration.engine.vae.layers import Encoder
from wan_orchestration.engine.vae.rows import SplitRows

CHUNK_BYTES = 16 * 2**20
"""Largest size of one feature map of the outermost layer."""
STILL_CHUNK = 8
"""Most frames in a chunk of a video with a still part: few, so the first stages soon reach their constant output."""
STRIDE = 8
"""Rows or columns of pixels in a row or column of latents."""


class AnimateVae(AutoencoderKLWan):
    """`AutoencoderKLWan` with longer chunks, and with its work shared by ranks.

    diffusers' class processes one latent frame (four frames) at a time and carries each layer's last frames over to the
    next in a cache. The cache works for chunks of any length, and small videos run several times faster in long chunks.
    A chunk has as many latent frames as keep a feature map of the outermost layer under `CHUNK_BYTES`: one at the 14B
    model's widths and 480p, the whole segment for small models.
    """

    rows: SplitRows | None = None
    tiled = False
    """Whether a single rank works on the picture in bands, see `in_bands`."""

    def split_over(self, ranks: Ranks) -> None:
        """Share the rows of every picture with the other ranks. All ranks must then call the methods below together."""
        if ranks.size > 1:
            self.rows = SplitRows(self, ranks)

    @torch.no_grad()
    def encode_video(self, video: Tensor, still_from: int | None = None) -> Tensor:
        """Normalised latents (1, 16, (T - 1) / 4 + 1, H / 8, W / 8) of a video (1, 3, T, H, W) in [-1, 1].

        If all frames from the index `still_from` on are equal, passing it saves work and gives the same result.
        """
        mean, std = self._statistics()
        latents = self._shared(partial(self._encode, still_from=still_from), video, STRIDE, 1)[
            :, : self.config["z_dim"]
        ]
        return (latents.float() - mean) / std

    @torch.no_grad()
    def decode_video(self, latents: Tensor) -> Tensor:
        """The video (3, T, H, W) float32, clamped to [-1, 1], of normalised latents (1, 16, T_lat, h, w)."""
        mean, std = self._statistics()
        return self._shared(self._decode_sample, latents.float() * std + mean, 1, STRIDE)[0]

    def _shared(self, run: Callable[[Tensor], Tensor], x: Tensor, rows_in: int, rows_out: int) -> Tensor:
        """Run on this rank's rows of x and join the results. `rows_in` and `rows_out` are as for `in_bands`."""
        rows = self.rows
        if self.tiled and rows is None:
            return in_bands(run, x, rows_in, rows_out)
        if rows is None or not rows.begin(x.shape[-2] // rows_in):
            return run(x)
        try:
            return rows.join(run(rows.take(x, rows_in)), rows_out)
        finally:
            rows.end()

    def _encode(self, x: Tensor, still_from: int | None = None) -> Tensor:
        """Mean and log variance, (1, 32, T_lat, h, w), of a video."""
        return self.quant_conv(torch.cat(list(self._encoded_chunks(x, still_from)), dim=2))

    def _encoded_chunks(self, x: Tensor, still_from: int | None) -> Iterator[Tensor]:
        step = 4 * self._latent_frames_at_once(*x.shape[-2:])
        encoder, seen_still = self.encoder, x.shape[2]
        if still_from is not None and isinstance(encoder, Encoder):
            step, seen_still = min(step, STILL_CHUNK), still_from + encoder.reach
        starts, cache = [0, *range(1, x.shape[2], step)], _empty_cache(encoder)
        for before, start, end in zip([0, *starts], starts, [*starts[1:], x.shape[2]], strict=False):
            if isinstance(encoder, Encoder):
                encoder.still = before >= seen_still
            chunk = x[:, :, start:end].to(self.dtype, memory_format=torch.channels_last_3d)
            yield encoder(chunk, feat_cache=cache, feat_idx=[0])
        if isinstance(encoder, Encoder):
            encoder.forget()

    def _decode(self, z: Tensor, return_dict: bool = True) -> DecoderOutput | tuple[Tensor]:
        sample = self._decode_sample(z)
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    def _decode_sample(self, z: Tensor) -> Tensor:
        step = self._latent_frames_at_once(z.shape[-2] * STRIDE, z.shape[-1] * STRIDE)
        z = self.post_quant_conv(z.to(self.dtype, memory_format=torch.channels_last_3d))
        starts = [0, *range(1, z.shape[2], step)]
        size, cache = (z.shape[-2] * STRIDE, z.shape[-1] * STRIDE), _empty_cache(self.decoder)
        video = z.new_empty(len(z), 3, 4 * z.shape[2] - 3, *size, dtype=torch.float32)
        for start, end in zip(starts, [*starts[1:], z.shape[2]], strict=True):
            chunk = z[:, :, start:end]
            frames = self.decoder(chunk, feat_cache=cache, feat_idx=[0], first_chunk=start == 0)
            # Written directly into the video, because joining parts would take twice the video's memory in addition.
            video[:, :, max(0, 4 * start - 3) : 4 * end - 3] = frames.clamp_(-1, 1)
        return video

    def _latent_frames_at_once(self, height: int, width: int) -> int:
        if self.rows and self.rows.latent_rows:
            # The same on every rank, because ranks process the chunks together.
            height = max(self.rows.latent_rows) * STRIDE
        map_bytes = self.config["base_dim"] * 4 * height * width * self.dtype.itemsize
        return max(1, CHUNK_BYTES // map_bytes)

    def _statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latents, (1, 16, 1, 1, 1)."""
        mean, std = (
            torch.tensor(self.config[name], dtype=torch.float32, device=self.device).view(1, -1, 1, 1, 1)
            for name in ("latents_mean", "latents_std")
        )
        return mean, std


def _empty_cache(part: nn.Module) -> list[Any]:
    """Room for the last frames of each causal convolution of the encoder or decoder."""
    return [None] * sum(isinstance(module, WanCausalConv3d) for module in part.modules())
