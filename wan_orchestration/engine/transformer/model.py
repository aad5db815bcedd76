"""What the transformers of all families have in common."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from diffusers.configuration_utils import ConfigMixin
from diffusers.hooks.hooks import HookRegistry
from diffusers.hooks.taylorseer_cache import TaylorSeerCacheConfig
from diffusers.models.cache_utils import CacheMixin
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from wan_orchestration.engine.parallel.sequence import SplitTokens
from wan_orchestration.engine.transformer.attention import CrossAttention, Keys, Rotary, SelfAttention, cross_keys
from wan_orchestration.engine.transformer.blocks import Block
from wan_orchestration.engine.transformer.compilation import Compilation
from wan_orchestration.stopwatch import Stopwatch

STEPS_BEFORE_CACHE = 3
"""Denoising steps that a step cache computes before it extrapolates the first one."""


@dataclass(frozen=True)
class Branch:
    """Conditions of one guidance branch, the same at every denoising step of a segment.

    context: embedded image and text tokens (1, image tokens + 512, dim), or their `cross_keys` for each block.
    name: the branch's key in the step cache.
    """

    context: Tensor | list[Keys]
    name: str = "cond"


class Trunk(nn.Module):
    """The blocks of a transformer: the part that can be streamed."""

    def __init__(self, transformer: "WanTransformer") -> None:
        super().__init__()
        self.blocks, self.norm = transformer.blocks, transformer.norm_out
        self.streamed = False
        """Whether the weights stay in host memory until a block runs."""
        self.on_device: Callable[[nn.Module], AbstractContextManager[Any]] = nullcontext
        """A context that has the weights of a module of `order` on the device."""

    def order(self) -> list[nn.Module]:
        """The modules in the order in which they run. Each is brought to the device alone, and sharded alone."""
        return list(self.blocks)

    def forward(self, x: Tensor, branch: Branch, modulation: Tensor, rotary: Rotary) -> Tensor:
        """From tokens (1, S, dim) to the last block's output, normalised, (1, S, dim) float32."""
        for index in range(len(self.blocks)):
            x = self.run_block(index, x, branch, modulation, rotary)
        return self.norm(x.float())

    def run_block(self, index: int, x: Tensor, branch: Branch, modulation: Tensor, rotary: Rotary) -> Tensor:
        """One block, tokens (1, S, dim) to (1, S, dim)."""
        context = branch.context if isinstance(branch.context, Tensor) else branch.context[index]
        with self.on_device(self.blocks[index]):
            return self.blocks[index](x, context, modulation, rotary)


class WanTransformer(ModelMixin, ConfigMixin, CacheMixin):
    """What a family's transformer gets beside one of diffusers' Wan classes, which it inherits too.

    A family adds `denoise`, which calls `run` with its own positions.
    """

    blocks: nn.ModuleList
    norm_out: nn.Module
    proj_out: nn.Linear
    patch_embedding: nn.Conv3d
    scale_shift_table: nn.Parameter
    condition_embedder: Any

    peak_maps: tuple[float, float] = (11.1, 6.1)
    """Feature maps, (tokens, dim) in the model's dtype, that exist at the peak of a denoising step: without slices, and
    with slices."""
    sharded_methods: tuple[str, ...] = ("denoise",)
    """Methods that need the weights of sharded blocks."""
    trunk_names: tuple[str, ...] = ("blocks",)
    """Names of the module lists that hold the modules of `Trunk.order`."""
    tokens: SplitTokens | None = None
    """How ranks share the tokens. None: this rank has all of them."""
    _trunk: tuple[Trunk] | None = None

    @staticmethod
    def converted(name: str, tensor: Tensor) -> dict[str, Tensor]:
        """A tensor of a snapshot or a LoRA under its names in this class. A fused matrix gives two tensors."""
        raise NotImplementedError

    @property
    def trunk(self) -> Trunk:
        if self._trunk is None:
            self._trunk = (self._make_trunk(),)  # in a tuple: as a submodule its parameters would be listed twice
        return self._trunk[0]

    def _make_trunk(self) -> Trunk:
        return Trunk(self)

    @property
    def dtype_of_weights(self) -> torch.dtype:
        return self.patch_embedding.weight.dtype

    def prepare(
        self,
        attention: str,
        group: dist.ProcessGroup | None,
        compiled: bool = False,
        step_cache: int = 0,
        stopwatch: Stopwatch | None = None,
    ) -> Compilation:
        """Set how the blocks compute.

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
        self.tokens = SplitTokens(group, self.config["num_attention_heads"]) if group else None
        compilation = Compilation(compiled, stopwatch)
        self._set_processors(attention)
        for block in self.blocks:
            assert isinstance(block, Block)
            block.compilation = compilation
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

    @property
    def kept_in_host(self) -> int:
        """Bytes of host memory that the transformer holds besides its weights, and uses again in the next job."""
        return 0

    def _set_processors(self, kernel: str) -> None:
        """Give every attention module its processor. `tokens` is set."""
        processor: Any  # diffusers allows only its own processor classes as a type
        for index, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            processor = self._self_attention(index, kernel)
            block.attn1.set_processor(processor)
            processor = CrossAttention()
            block.attn2.set_processor(processor)

    def _self_attention(self, index: int, kernel: str) -> SelfAttention:
        """The processor of a block's self-attention."""
        return SelfAttention(kernel, self.tokens)

    def use_slices(self, sliced: bool = True) -> None:
        """Whether the trunk's modules work on slices of the tokens: less memory, the same result."""
        one: Any
        for one in self.trunk.order():
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

    def run(
        self, latents: Tensor, timestep: Tensor, y: Tensor, branch: Branch, rotary: Rotary, added: Tensor | None = None
    ) -> Tensor:
        """Predict the flow of one denoising step.

        Args:
            latents: (1, 16, T, h, w), the reference slot first.
            timestep: (1,) in 0..1000.
            y: (1, 20, T, h, w) mask and conditioning latents.
            branch: conditions of the guidance branch.
            rotary: of all tokens.
            added: to the embedded patches after the reference slot, (1, dim, T - 1, h/2, w/2).

        Returns:
            (1, 16, T, h, w) in the model's dtype.
        """
        dtype = self.dtype_of_weights
        x = self.patch_embedding(torch.cat([latents.to(dtype), y.to(dtype)], dim=1))
        if added is not None:
            x[:, :, 1:] += added
        grid = x.shape[2:]
        x, rotary = self.split(x.flatten(2).transpose(1, 2).contiguous(), rotary, self.tokens)
        time, modulation = self.embed_time(timestep)
        with self.cache_context(branch.name):
            x = self.trunk(x, branch, modulation, rotary)
            return self._project_out(x, time, grid)

    def split(self, x: Tensor, rotary: Rotary, tokens: SplitTokens | None) -> tuple[Tensor, Rotary]:
        """This rank's part of the tokens (1, S, dim) and of their rotary tables."""
        if tokens is None:
            return x, rotary
        tokens.total = x.shape[1]
        return tokens.split(x), (tokens.split(rotary[0]), tokens.split(rotary[1]))

    def embed_time(self, timestep: Tensor) -> tuple[Tensor, Tensor]:
        """The embedded timestep (1, dim), and the blocks' modulation (1, 6, dim)."""
        embedder = self.condition_embedder
        frequencies = embedder.timesteps_proj(timestep).to(embedder.time_embedder.linear_1.weight.dtype)
        time = embedder.time_embedder(frequencies).to(self.dtype_of_weights)
        return time, embedder.time_proj(embedder.act_fn(time)).unflatten(1, (6, -1))

    def _project_out(self, x: Tensor, time: Tensor, grid: torch.Size) -> Tensor:
        shift, scale = (self.scale_shift_table + time.unsqueeze(1)).chunk(2, dim=1)
        x = self.proj_out((x * (1 + scale) + shift).to(self.proj_out.weight.dtype))
        if self.tokens:
            x = self.tokens.gather(x)
        x = x.unflatten(2, (*self.config["patch_size"], -1)).unflatten(1, grid)
        x = x.permute(0, 7, 1, 4, 2, 5, 3, 6)  # (1, 16, T, p_t, H, p_h, W, p_w)
        return x.flatten(6, 7).flatten(4, 5).flatten(2, 3)
