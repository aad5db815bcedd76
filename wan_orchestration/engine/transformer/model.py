"""The Animate transformer. What is the same at all denoising steps is computed once, before them."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from inspect import signature
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from diffusers.hooks.hooks import HookRegistry
from diffusers.hooks.taylorseer_cache import TaylorSeerCacheConfig
from diffusers.models.transformers.transformer_wan_animate import (
    WanAnimateFaceBlockAttnProcessor,
    WanAnimateTransformer3DModel,
)
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from wan_orchestration.engine.conditioning import to_tensor
from wan_orchestration.engine.parallel.ranks import Ranks
from wan_orchestration.engine.parallel.sequence import SplitTokens
from wan_orchestration.engine.transformer.attention import (
    CrossAttention,
    FaceAttention,
    Keys,
    Rotary,
    SelfAttention,
    cross_keys,
)
from wan_orchestration.engine.transformer.blocks import Block, FaceAdapter, use_own_blocks
from wan_orchestration.engine.transformer.compilation import Compilation
from wan_orchestration.stopwatch import Stopwatch

STEPS_BEFORE_CACHE = 3
"""Denoising steps that a step cache computes before it extrapolates the first one."""


@dataclass(frozen=True)
class Branch:
    """Conditions of one guidance branch, the same at every denoising step of a segment.

    context: embedded image and text tokens (1, image tokens + 512, dim), or their `cross_keys` for each block.
    motion: (1, T_lat + 1, heads + 1, dim) face features by latent frame; zeros in the reference slot.
    name: the branch's key in the step cache.
    face_strength: scale of what the face adapters add.
    """

    context: Tensor | list[Keys]
    motion: Tensor
    name: str = "cond"
    face_strength: float = 1.0


class Trunk(nn.Module):
    """The blocks of a transformer and the face adapters between them: the part that can be streamed."""

    def __init__(self, transformer: "AnimateTransformer") -> None:
        super().__init__()
        self.every = transformer.config["inject_face_latents_blocks"]
        self.blocks, self.face_adapter, self.norm = transformer.blocks, transformer.face_adapter, transformer.norm_out
        self.streamed = False
        """Whether the weights stay in host memory until a block runs."""
        self.on_device: Callable[[nn.Module], AbstractContextManager[Any]] = nullcontext
        """A context that has the weights of a block or face adapter on the device."""

    def order(self) -> list[nn.Module]:
        """Blocks and face adapters in the order in which they run."""
        return [
            one
            for index, block in enumerate(self.blocks)
            for one in (block, *([self.face_adapter[index // self.every]] if index % self.every == 0 else []))
        ]

    def forward(self, x: Tensor, branch: Branch, modulation: Tensor, rotary: Rotary) -> Tensor:
        """From tokens (1, S, dim) to the last block's output, normalised, (1, S, dim) float32."""
        for index, block in enumerate(self.blocks):
            context = branch.context if isinstance(branch.context, Tensor) else branch.context[index]
            with self.on_device(block):
                x = block(x, context, modulation, rotary)
            if index % self.every == 0:
                adapter = self.face_adapter[index // self.every]
                with self.on_device(adapter):
                    x = torch.add(x, adapter(x, branch.motion), alpha=branch.face_strength)
        return self.norm(x.float())


class AnimateTransformer(WanAnimateTransformer3DModel):
    """`WanAnimateTransformer3DModel`, split into what runs once per segment and what runs at each denoising step.

    The `forward` of diffusers' class encodes the face and embeds pose, text and image again at every step.
    """

    tokens: SplitTokens | None = None
    """How ranks share the tokens of `denoise`. None: this rank has all of them."""
    _tables: tuple[torch.Size, Rotary] | None = None
    _trunk: tuple[Trunk] | None = None

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        use_own_blocks(self.blocks, self.face_adapter)

    # diffusers reads the names of configuration fields from this signature.
    __init__.__signature__ = signature(WanAnimateTransformer3DModel.__init__)  # pyright: ignore[reportFunctionMemberAccess]

    @property
    def trunk(self) -> Trunk:
        if self._trunk is None:
            self._trunk = (Trunk(self),)  # in a tuple: as a submodule its parameters would be listed twice
        return self._trunk[0]

    def prepare(
        self,
        attention: str,
        group: dist.ProcessGroup | None,
        compiled: bool = False,
        step_cache: int = 0,
        stopwatch: Stopwatch | None = None,
    ) -> Compilation:
        """Set how `denoise` computes.

        Args:
            attention: kernel of the self-attention, one of `attention.KERNELS`.
            group: ranks that share the tokens; all of them must call `denoise`. None: no sharing.
            compiled: compile the blocks at the first denoising step. Later steps and launches reuse the kernels.
            step_cache: compute every n-th step and extrapolate the others. 0: compute all.
            stopwatch: measures the compiling.

        Returns:
            Whether compiling worked, known after the first `denoise`.

        Raises:
            BadInput: there are more ranks than attention heads.
        """
        tokens = self.tokens = SplitTokens(group, self.config["num_attention_heads"]) if group else None
        processor: Any  # diffusers allows only its own processor classes as a type
        compilation = Compilation(compiled, stopwatch)
        for block in self.blocks:
            assert isinstance(block, Block)
            block.compilation = compilation
            processor = SelfAttention(attention, tokens)
            block.attn1.set_processor(processor)
            processor = CrossAttention()
            block.attn2.set_processor(processor)
        for adapter in self.face_adapter:
            assert isinstance(adapter, FaceAdapter)
            processor = FaceAttention(tokens) if tokens else WanAnimateFaceBlockAttnProcessor()
            adapter.set_processor(processor)

        if self.is_cache_enabled:
            self.disable_cache()
        if step_cache > 1:
            self.enable_cache(
                TaylorSeerCacheConfig(
                    cache_interval=step_cache,
                    disable_cache_before_step=STEPS_BEFORE_CACHE,
                    taylor_factors_dtype=torch.float32,
                    use_lite_mode=True,  # extrapolates only the model's output, so no layer's output is stored
                )
            )
        return compilation

    def use_slices(self, sliced: bool = True) -> None:
        """Whether blocks and face adapters work on slices of the tokens: less memory, the same result."""
        for one in (*self.blocks, *self.face_adapter):
            assert isinstance(one, Block | FaceAdapter)
            one.sliced = sliced

    def reset_step_cache(self) -> None:
        """Forget the steps of the previous segment. Call it before the first step of each segment."""
        if self.is_cache_enabled:
            HookRegistry.check_if_exists_or_initialize(self).reset_stateful_hooks(recurse=True)

    def embed_context(self, text: Tensor, image: Tensor) -> Tensor:
        """Tokens (1, 769, dim), image first, of text (1, 512, text_dim) and CLIP features (1, 257, image_dim)."""
        embedder = self.condition_embedder
        assert embedder.image_embedder is not None
        return torch.cat([embedder.image_embedder(image), embedder.text_embedder(text)], dim=1)

    def cross_keys(self, context: Tensor) -> list[Keys]:
        """Keys and values of each block's cross-attention, the same at every denoising step of a job.

        They take 0.6 GB at the 14B model's widths in bfloat16.
        """
        keys = []
        for block in self.blocks:
            assert isinstance(block, Block)
            if isinstance(block, FSDPModule):
                block.unshard()
            keys.append(cross_keys(block.attn2, context))
            if isinstance(block, FSDPModule):
                block.reshard()
        return keys

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

    def denoise(self, latents: Tensor, timestep: Tensor, y: Tensor, pose: Tensor, branch: Branch) -> Tensor:
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
        dtype = self.patch_embedding.weight.dtype
        x = torch.cat([latents.to(dtype), y.to(dtype)], dim=1)
        rotary = self._rotary(x)
        x = self.patch_embedding(x)
        grid = x.shape[2:]
        x[:, :, 1:] += pose
        x = x.flatten(2).transpose(1, 2).contiguous()
        if self.tokens:
            self.tokens.total = x.shape[1]
            x = self.tokens.split(x)
            rotary = self.tokens.split(rotary[0]), self.tokens.split(rotary[1])

        embedder = self.condition_embedder
        frequencies = embedder.timesteps_proj(timestep).to(embedder.time_embedder.linear_1.weight.dtype)
        time = embedder.time_embedder(frequencies).to(dtype)
        modulation = embedder.time_proj(embedder.act_fn(time)).unflatten(1, (6, -1))

        with self.cache_context(branch.name):
            x = self.trunk(x, branch, modulation, rotary)
            return self._project_out(x, time, grid)

    def _rotary(self, x: Tensor) -> Rotary:
        """The rotary tables for latents x. Each pair of channels shares one value."""
        if self._tables is None or self._tables[0] != x.shape:
            cos, sin = self.rope(x)
            self._tables = x.shape, (cos[..., 0::2].contiguous(), sin[..., 1::2].contiguous())
        return self._tables[1]

    def _project_out(self, x: Tensor, time: Tensor, grid: torch.Size) -> Tensor:
        shift, scale = (self.scale_shift_table + time.unsqueeze(1)).chunk(2, dim=1)
        x = self.proj_out((x * (1 + scale) + shift).to(self.proj_out.weight.dtype))
        if self.tokens:
            x = self.tokens.gather(x)
        x = x.unflatten(2, (*self.config["patch_size"], -1)).unflatten(1, grid)
        x = x.permute(0, 7, 1, 4, 2, 5, 3, 6)  # (1, 16, T, p_t, H, p_h, W, p_w)
        return x.flatten(6, 7).flatten(4, 5).flatten(2, 3)
