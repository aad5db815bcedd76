"""The Animate transformer: a Wan transformer with face adapters, which also gets the embedded pose."""

from dataclasses import dataclass, field
from inspect import signature
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.transformers.transformer_wan_animate import (
    WanAnimateFaceBlockAttnProcessor,
    WanAnimateFaceBlockCrossAttention,
    WanAnimateTransformer3DModel,
)
from torch import Tensor, nn

from wan_orchestration.engine.conditioning import to_tensor
from wan_orchestration.engine.diffusers_internals import AttentionProcessor
from wan_orchestration.engine.parallel.ranks import Ranks
from wan_orchestration.engine.parallel.sequence import SplitTokens
from wan_orchestration.engine.transformer.attention import Rotary
from wan_orchestration.engine.transformer.blocks import SLICE, slices, use_own_blocks
from wan_orchestration.engine.transformer.model import Branch, Trunk, WanTransformer


class FaceAttention(AttentionProcessor):
    """Processor of a face adapter on this rank's tokens.

    A token attends only to the few face features of its own latent frame. The local tokens are cut where latent frames
    begin in the whole sequence, so ranks need not communicate.
    """

    def __init__(self, tokens: SplitTokens) -> None:
        self.tokens = tokens

    def __call__(
        self,
        attn: WanAnimateFaceBlockCrossAttention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """(1, local, dim) of local tokens (1, local, dim) and the face features (1, T, n, dim) of all latent frames."""
        assert encoder_hidden_states is not None
        assert attention_mask is None
        tokens = self.tokens
        per_frame = tokens.total // encoder_hidden_states.shape[1]
        first, last = tokens.start // per_frame, -(-(tokens.start + tokens.local) // per_frame)
        before, behind = tokens.start - first * per_frame, last * per_frame - tokens.start - tokens.local
        # Padding tokens fall into frames that do not exist; they get the features of the last frame.
        frames = torch.arange(first, last, device=hidden_states.device).clamp(max=encoder_hidden_states.shape[1] - 1)
        features = attn.pre_norm_kv(encoder_hidden_states[0, frames])

        query = attn.norm_q(attn.to_q(attn.pre_norm_q(hidden_states)).unflatten(2, (attn.heads, -1)))
        query = F.pad(query[0], (0, 0, 0, 0, before, behind)).unflatten(0, (len(frames), per_frame))
        key = attn.norm_k(attn.to_k(features).unflatten(2, (attn.heads, -1)))
        value = attn.to_v(features).unflatten(2, (attn.heads, -1))
        attended = dispatch_attention_fn(query, key, value)
        attended = attended.flatten(2, 3).flatten(0, 1)[before : before + tokens.local].type_as(hidden_states)
        return attn.to_out(attended[None])


class FaceAdapter(WanAnimateFaceBlockCrossAttention):
    """A face adapter that can work on some latent frames at a time. Its attention never crosses a latent frame."""

    sliced = False
    """As `Block.sliced`."""

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """(1, S, dim) of tokens (1, S, dim) and face features (1, T, n, dim) by latent frame."""
        assert encoder_hidden_states is not None
        # With several ranks, each has few tokens, and these need not start at a latent frame.
        if not self.sliced or isinstance(self.processor, FaceAttention):
            return super().forward(hidden_states, encoder_hidden_states, attention_mask)
        frames = encoder_hidden_states.shape[1]
        of_one, result = hidden_states.shape[1] // frames, torch.empty_like(hidden_states)
        for part in slices(frames, max(1, SLICE // of_one)):
            tokens = slice(part.start * of_one, part.stop * of_one)
            result[:, tokens] = super().forward(hidden_states[:, tokens], encoder_hidden_states[:, part])
        return result


@dataclass(frozen=True)
class FaceBranch(Branch):
    """A branch with the face.

    motion: (1, T_lat + 1, heads + 1, dim) face features by latent frame; zeros in the reference slot.
    face_strength: scale of what the face adapters add.
    """

    motion: Tensor = field(kw_only=True)
    face_strength: float = 1.0


class FaceTrunk(Trunk):
    """The blocks and the face adapters between them."""

    def __init__(self, transformer: "AnimateTransformer") -> None:
        super().__init__(transformer)
        self.every, self.face_adapter = transformer.config["inject_face_latents_blocks"], transformer.face_adapter

    def order(self) -> list[nn.Module]:
        return [
            one
            for index, block in enumerate(self.blocks)
            for one in (block, *([self.face_adapter[index // self.every]] if index % self.every == 0 else []))
        ]

    def run_block(self, index: int, x: Tensor, branch: Branch, modulation: Tensor, rotary: Rotary) -> Tensor:
        assert isinstance(branch, FaceBranch)
        x = super().run_block(index, x, branch, modulation, rotary)
        if index % self.every:
            return x
        adapter = self.face_adapter[index // self.every]
        with self.on_device(adapter):
            return torch.add(x, adapter(x, branch.motion), alpha=branch.face_strength)


class AnimateTransformer(WanTransformer, WanAnimateTransformer3DModel):
    """`WanAnimateTransformer3DModel`, split into what runs once per segment and what runs at each denoising step.

    The `forward` of diffusers' class encodes the face and embeds pose, text and image again at every step.
    """

    trunk_names = ("blocks", "face_adapter")
    _tables: tuple[torch.Size, Rotary] | None = None

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        use_own_blocks(self.blocks)
        for adapter in self.face_adapter:
            adapter.__class__ = FaceAdapter

    # diffusers reads the names of configuration fields from this signature.
    __init__.__signature__ = signature(WanAnimateTransformer3DModel.__init__)  # pyright: ignore[reportFunctionMemberAccess]

    @staticmethod
    def converted(name: str, tensor: Tensor) -> dict[str, Tensor]:
        # The converter applies its Animate rules only if a face adapter is among the keys.
        hint = {} if "face_adapter" in name else {"face_adapter": tensor}
        converted = convert_wan_transformer_to_diffusers({name: tensor, **hint})
        return {key: value for key, value in converted.items() if key not in hint}

    def _make_trunk(self) -> Trunk:
        return FaceTrunk(self)

    def _set_processors(self, kernel: str) -> None:
        super()._set_processors(kernel)
        processor: Any  # diffusers allows only its own processor classes as a type
        for adapter in self.face_adapter:
            assert isinstance(adapter, FaceAdapter)
            processor = FaceAttention(self.tokens) if self.tokens else WanAnimateFaceBlockAttnProcessor()
            adapter.set_processor(processor)

    def embed_pose(self, pose_latents: Tensor, strength: float = 1.0) -> Tensor:
        """(1, dim, T_lat, h/2, w/2) of pose latents (1, 16, T_lat, h, w), times `strength`."""
        return strength * self.pose_patch_embedding(pose_latents)

    def encode_face(self, face: np.ndarray, ranks: Ranks) -> Tensor:
        """Motion features (1, T_lat + 1, heads + 1, dim) of face frames (T, 512, 512, 3) uint8.

        The motion encoder takes frames in groups of `motion_encoder_batch_size`, as published; ranks share the groups.
        Each group is converted to floats only when it is encoded, and is channels last in memory: on a CPU this makes
        the encoder's convolutions, mainly its blurs, twice as fast.
        """
        size, weight = self.config["motion_encoder_batch_size"], self.face_encoder.out_proj.weight
        vectors = weight.new_zeros(len(face), self.motion_encoder.motion_synthesis_weight.shape[0])
        for start in range(ranks.rank * size, len(face), ranks.size * size):
            group = to_tensor(face[start : start + size], weight.device)[0].transpose(0, 1).to(weight.dtype)
            vectors[start : start + size] = self.motion_encoder(group)
        features = self.face_encoder(ranks.sum(vectors)[None])
        return torch.cat([torch.zeros_like(features[:, :1]), features], dim=1)

    def denoise(self, latents: Tensor, timestep: Tensor, y: Tensor, pose: Tensor, branch: FaceBranch) -> Tensor:
        """Predict the flow of one denoising step.

        Args:
            latents: (1, 16, T_lat + 1, h, w), the reference slot first.
            timestep: (1,) integer in 0..1000.
            y: (1, 20, T_lat + 1, h, w) mask and conditioning latents.
            pose: from `embed_pose`.
            branch: conditions of the guidance branch.

        Returns:
            (1, 16, T_lat + 1, h, w) in the model's dtype.
        """
        return self.run(latents, timestep, y, branch, self._rotary(latents), added=pose)

    def _rotary(self, x: Tensor) -> Rotary:
        """The rotary tables for latents x. Each pair of channels shares one value."""
        if self._tables is None or self._tables[0] != x.shape:
            cos, sin = self.rope(x)
            self._tables = x.shape, (cos[..., 0::2].contiguous(), sin[..., 1::2].contiguous())
        return self._tables[1]
