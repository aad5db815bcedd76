"""The causal video VAE, run over as many frames at a time as a memory budget allows."""

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.vae import DecoderOutput
from torch import Tensor

CHUNK_BYTES = 64 * 2**20


class AnimateVae(AutoencoderKLWan):
    """`AutoencoderKLWan` with longer chunks.

    The class walks a video one latent frame (four frames) at a time and carries the last frames of each layer over in
    a cache. The cache serves a chunk of any length alike, and small videos run several times faster in long ones. The
    chunk is as long as one feature map of the outermost layer stays under `CHUNK_BYTES`: one latent frame at the 14B
    model's widths and 480p, the whole clip for small models.
    """

    @torch.no_grad()
    def encode_video(self, video: Tensor) -> Tensor:
        """Video (1, 3, T, H, W) in [-1, 1] as normalised latents (1, 16, (T - 1) / 4 + 1, H / 8, W / 8)."""
        mean, std = self._statistics()
        return (self.encode(video).latent_dist.mode() - mean) / std

    @torch.no_grad()
    def decode_video(self, latents: Tensor) -> Tensor:
        """Normalised latents (1, 16, T_lat, h, w) as video (3, T, H, W) float32, clamped to [-1, 1]."""
        mean, std = self._statistics()
        return self.decode(latents.float() * std + mean).sample[0]

    def _encode(self, x: Tensor) -> Tensor:
        self.clear_cache()
        step = 4 * self._latent_frames_at_once(*x.shape[-2:])
        starts = [0, *range(1, x.shape[2], step)]
        parts = []
        for start, end in zip(starts, [*starts[1:], x.shape[2]], strict=True):
            self._enc_conv_idx = [0]
            chunk = x[:, :, start:end]
            parts.append(self.encoder(chunk, feat_cache=self._enc_feat_map, feat_idx=self._enc_conv_idx))
        self.clear_cache()
        return self.quant_conv(torch.cat(parts, dim=2))

    def _decode(self, z: Tensor, return_dict: bool = True) -> DecoderOutput | tuple[Tensor]:
        self.clear_cache()
        stride = self.spatial_compression_ratio
        step = self._latent_frames_at_once(z.shape[-2] * stride, z.shape[-1] * stride)
        z = self.post_quant_conv(z)
        starts = [0, *range(1, z.shape[2], step)]
        parts = []
        for start, end in zip(starts, [*starts[1:], z.shape[2]], strict=True):
            self._conv_idx = [0]
            chunk = z[:, :, start:end]
            parts.append(
                self.decoder(chunk, feat_cache=self._feat_map, feat_idx=self._conv_idx, first_chunk=start == 0)
            )
        self.clear_cache()
        sample = torch.cat(parts, dim=2).clamp(-1, 1)
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    def _latent_frames_at_once(self, height: int, width: int) -> int:
        of_one = self.config.base_dim * 4 * height * width * self.dtype.itemsize
        return max(1, CHUNK_BYTES // of_one)

    def _statistics(self) -> tuple[Tensor, Tensor]:
        mean, std = (
            torch.tensor(values, dtype=torch.float32, device=self.device).view(1, -1, 1, 1, 1)
            for values in (self.config.latents_mean, self.config.latents_std)
        )
        return mean, std
