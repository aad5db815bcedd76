"""The Animate transformer, with what does not change between denoising steps taken out of the step."""

from dataclasses import dataclass

import torch
from diffusers import WanAnimateTransformer3DModel
from torch import Tensor


@dataclass(frozen=True)
class Branch:
    """Conditions of one guidance branch, the same at every step of a clip.

    context: (1, image tokens + 512, dim) embedded image and text tokens.
    motion: (1, T_lat + 1, heads + 1, dim) face features by latent frame; the reference slot's are zero.
    """

    context: Tensor
    motion: Tensor


class AnimateTransformer(WanAnimateTransformer3DModel):
    """`WanAnimateTransformer3DModel` split into what runs once per clip and what runs at each step.

    Its own `forward` encodes the face clip and embeds pose, text and image again at every step.
    """

    def embed_context(self, text: Tensor, image: Tensor) -> Tensor:
        """Text (1, 512, text_dim) and CLIP features (1, 257, image_dim) as tokens (1, 769, dim), image first."""
        embedder = self.condition_embedder
        return torch.cat([embedder.image_embedder(image), embedder.text_embedder(text)], dim=1)

    def embed_pose(self, pose_latents: Tensor) -> Tensor:
        """Pose latents (1, 16, T_lat, h, w) as (1, dim, T_lat, h/2, w/2)."""
        return self.pose_patch_embedding(pose_latents)

    def encode_face(self, face: Tensor) -> Tensor:
        """Face clip (1, 3, T, 512, 512) in [-1, 1] as motion features (1, T_lat + 1, heads + 1, dim).

        Frames pass the motion encoder in groups of `motion_encoder_batch_size`, as published.
        """
        groups = face[0].transpose(0, 1).split(self.config.motion_encoder_batch_size)
        vectors = torch.cat([self.motion_encoder(group) for group in groups])
        features = self.face_encoder(vectors[None])
        return torch.cat([torch.zeros_like(features[:, :1]), features], dim=1)

    def denoise(self, latents: Tensor, timestep: Tensor, y: Tensor, pose: Tensor, branch: Branch) -> Tensor:
        """Predict the flow of one step.

        Args:
            latents: (1, 16, T_lat + 1, h, w), the reference slot first.
            timestep: (1,) integer in 0..1000.
            y: (1, 20, T_lat + 1, h, w) mask and conditioning latents.
            pose: from `embed_pose`.
            branch: conditions of this guidance branch.

        Returns:
            (1, 16, T_lat + 1, h, w) in the model's dtype.
        """
        dtype = self.patch_embedding.weight.dtype
        x = torch.cat([latents.to(dtype), y.to(dtype)], dim=1)
        rotary = self.rope(x)
        x = self.patch_embedding(x)
        grid = x.shape[2:]
        x[:, :, 1:] += pose
        x = x.flatten(2).transpose(1, 2).contiguous()

        embedder = self.condition_embedder
        frequencies = embedder.timesteps_proj(timestep).to(embedder.time_embedder.linear_1.weight.dtype)
        time = embedder.time_embedder(frequencies).type_as(branch.context)
        modulation = embedder.time_proj(embedder.act_fn(time)).unflatten(1, (6, -1))

        for index, block in enumerate(self.blocks):
            x = block(x, branch.context, modulation, rotary)
            if index % self.config.inject_face_latents_blocks == 0:
                adapter = self.face_adapter[index // self.config.inject_face_latents_blocks]
                x = x + adapter(x, branch.motion)
        return self._project_out(x, time, grid)

    def _project_out(self, x: Tensor, time: Tensor, grid: torch.Size) -> Tensor:
        shift, scale = (self.scale_shift_table + time.unsqueeze(1)).chunk(2, dim=1)
        x = (self.norm_out(x.float()) * (1 + scale) + shift).type_as(x)
        x = self.proj_out(x).unflatten(2, (*self.config.patch_size, -1)).unflatten(1, grid)
        x = x.permute(0, 7, 1, 4, 2, 5, 3, 6)  # (1, 16, T, p_t, H, p_h, W, p_w)
        return x.flatten(6, 7).flatten(4, 5).flatten(2, 3)
