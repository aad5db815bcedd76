"""The causal video VAE, run over as many frames at a time as a memory budget allows, and over ranks by rows."""

from collections.abc import Callable
from functools import partial

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.models.autoencoders.vae import DecoderOutput
from torch import Tensor

from wan_orchestration.animate.parallel.ranks import Ranks
from wan_orchestration.animate.vae.bands import in_bands
from wan_orchestration.animate.vae.layers import Encoder
from wan_orchestration.animate.vae.rows import SplitRows

CHUNK_BYTES = 16 * 2**20
STILL_CHUNK = 8
"""Frames of a chunk of a still video: few, so that few are computed before the first stages have come to rest."""
STRIDE = 8
"""Rows and columns of pixels in one of latents."""


class AnimateVae(AutoencoderKLWan):
    """`AutoencoderKLWan` with longer chunks, and its work shared by ranks.

    The class walks a video one latent frame (four frames) at a time and carries the last frames of each layer over in
    a cache. The cache serves a chunk of any length alike, and small videos run several times faster in long ones. The
    chunk is as long as one feature map of the outermost layer stays under `CHUNK_BYTES`: one latent frame at the 14B
    model's widths and 480p, the whole clip for small models.
    """

    rows: SplitRows | None = None
    tiled = False
    """Whether one rank alone works on the picture in bands, see `in_bands`."""

    def split_over(self, ranks: Ranks) -> None:
        """Share the rows of every picture with other ranks, which then all call the methods below together."""
        if ranks.size > 1:
            self.rows = SplitRows(self, ranks)

    @torch.no_grad()
    def encode_video(self, video: Tensor, still_from: int | None = None) -> Tensor:
        """Video (1, 3, T, H, W) in [-1, 1] as normalised latents (1, 16, (T - 1) / 4 + 1, H / 8, W / 8).

        All frames from `still_from` on are the same, if it is given: less work, the same result.
        """
        mean, std = self._statistics()
        latents = self._shared(partial(self._encode, still_from=still_from), video, STRIDE, 1)[
            :, : self.config["z_dim"]
        ]
        return (latents.float() - mean) / std

    @torch.no_grad()
    def decode_video(self, latents: Tensor) -> Tensor:
        """Normalised latents (1, 16, T_lat, h, w) as video (3, T, H, W) float32, clamped to [-1, 1]."""
        mean, std = self._statistics()
        return self._shared(self._decode_sample, latents.float() * std + mean, 1, STRIDE)[0]

    def _shared(self, run: Callable[[Tensor], Tensor], x: Tensor, rows_in: int, rows_out: int) -> Tensor:
        """Run over this rank's rows of x and join the results; `rows_in` and `rows_out` make a row of latents."""
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
        self.clear_cache()
        step = 4 * self._latent_frames_at_once(*x.shape[-2:])
        encoder, seen_still = self.encoder, x.shape[2]
        if still_from is not None and isinstance(encoder, Encoder):
            step, seen_still = min(step, STILL_CHUNK), still_from + encoder.reach
        starts = [0, *range(1, x.shape[2], step)]
        parts = []
        for before, start, end in zip([0, *starts], starts, [*starts[1:], x.shape[2]], strict=False):
            self._enc_conv_idx = [0]
            if isinstance(encoder, Encoder):
                encoder.still = before >= seen_still
            chunk = x[:, :, start:end].to(self.dtype, memory_format=torch.channels_last_3d)
            parts.append(encoder(chunk, feat_cache=self._enc_feat_map, feat_idx=self._enc_conv_idx))
        self.clear_cache()
        if isinstance(encoder, Encoder):
            encoder.forget()
        return self.quant_conv(torch.cat(parts, dim=2))

    def _decode(self, z: Tensor, return_dict: bool = True) -> DecoderOutput | tuple[Tensor]:
        sample = self._decode_sample(z)
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    def _decode_sample(self, z: Tensor) -> Tensor:
        self.clear_cache()
        step = self._latent_frames_at_once(z.shape[-2] * STRIDE, z.shape[-1] * STRIDE)
        z = self.post_quant_conv(z.to(self.dtype, memory_format=torch.channels_last_3d))
        starts = [0, *range(1, z.shape[2], step)]
        size = z.shape[-2] * STRIDE, z.shape[-1] * STRIDE
        video = z.new_empty(len(z), 3, 4 * z.shape[2] - 3, *size, dtype=torch.float32)
        for start, end in zip(starts, [*starts[1:], z.shape[2]], strict=True):
            self._conv_idx = [0]
            chunk = z[:, :, start:end]
            frames = self.decoder(chunk, feat_cache=self._feat_map, feat_idx=self._conv_idx, first_chunk=start == 0)
            # Straight to its place: parts to be joined would take the memory of the video twice more.
            video[:, :, max(0, 4 * start - 3) : 4 * end - 3] = frames.clamp_(-1, 1)
        self.clear_cache()
        return video

    def _latent_frames_at_once(self, height: int, width: int) -> int:
        if self.rows and self.rows.latent_rows:
            # The same on every rank: they walk the chunks together.
            height = max(self.rows.latent_rows) * STRIDE
        of_one = self.config["base_dim"] * 4 * height * width * self.dtype.itemsize
        return max(1, CHUNK_BYTES // of_one)

    def _statistics(self) -> tuple[Tensor, Tensor]:
        mean, std = (
            torch.tensor(self.config[name], dtype=torch.float32, device=self.device).view(1, -1, 1, 1, 1)
            for name in ("latents_mean", "latents_std")
        )
        return mean, std
