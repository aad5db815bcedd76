"""The Animate-2 transformer: a Wan transformer whose generated tokens attend to the driving video's."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from inspect import signature
from typing import Any

import torch
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from wan_orchestration.engine.transformer.attention import Rotary, SelfAttention
from wan_orchestration.engine.transformer.blocks import Block, use_own_blocks
from wan_orchestration.engine.transformer.model import Branch, Trunk, WanTransformer
from wan_orchestration.families.animate_2.attention import InContextAttention
from wan_orchestration.families.animate_2.driving import Driving, Pass, Where

THETA = 10000.0
DRIVING_TIMESTEP = 1
TIME_OFFSET = 1
"""Latent frame i of the driving video has the time of generated frame i + 1."""
UNCONDITIONAL_SKIPS = frozenset({9})
"""Blocks that the unconditional branch leaves out."""


@dataclass(frozen=True)
class InContextBranch(Branch):
    """A branch that may leave blocks out."""

    skips: frozenset[int] = frozenset()


class InContextTrunk(Trunk):
    """Blocks that read what they computed of the driving video."""

    driving: Driving | None = None

    def forward(self, x: Tensor, branch: Branch, modulation: Tensor, rotary: Rotary) -> Tensor:
        assert isinstance(branch, InContextBranch)
        assert self.driving is not None
        self.driving.order = [index for index in range(len(self.blocks)) if index not in branch.skips]
        return super().forward(x, branch, modulation, rotary)

    def run_block(self, index: int, x: Tensor, branch: Branch, modulation: Tensor, rotary: Rotary) -> Tensor:
        assert isinstance(branch, InContextBranch)
        if index not in branch.skips:
            return super().run_block(index, x, branch, modulation, rotary)
        block = self.blocks[index]
        if isinstance(block, FSDPModule):  # ranks of the other branch gather its weights
            block.unshard()
            block.reshard()
        return x


class Animate2Transformer(WanTransformer, WanTransformer3DModel):
    """`WanTransformer3DModel`, which has the published model's tensors, with its attention to the driving video."""

    peak_maps = (12.5, 6.8)
    sharded_methods = ("denoise", "read_driving")
    _tables: tuple[Any, Rotary] | None = None

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        use_own_blocks(self.blocks)

    # diffusers reads the names of configuration fields from this signature.
    __init__.__signature__ = signature(WanTransformer3DModel.__init__)  # pyright: ignore[reportFunctionMemberAccess]

    @staticmethod
    def converted(name: str, tensor: Tensor) -> dict[str, Tensor]:
        """Both published layouts: `blocks.0.block.self_attn.q` and `blocks.0.self_attn.to_q`."""
        return convert_wan_transformer_to_diffusers({name.replace(".block.", ".", 1): tensor})

    @property
    def trunk(self) -> InContextTrunk:
        trunk = super().trunk
        assert isinstance(trunk, InContextTrunk)
        return trunk

    def _make_trunk(self) -> Trunk:
        return InContextTrunk(self)

    def _set_processors(self, kernel: str) -> None:
        if self.trunk.driving is None:
            self.keep_driving("device")
        super()._set_processors(kernel)

    def _self_attention(self, index: int, kernel: str) -> SelfAttention:
        block = self.blocks[index]
        assert isinstance(block, Block)
        return InContextAttention(kernel, self.tokens, lambda: self.driving, index, block)

    def keep_driving(self, where: Where, eight_bits: bool = False) -> None:
        """Set where the driving pass leaves its keys and values, see `Driving`. Call it after `prepare`."""
        device, kept = self.patch_embedding.weight.device, self.trunk.driving
        if kept is None or (kept.where, kept.eight_bits, kept.device) != (where, eight_bits, device):
            self.trunk.driving = kept = Driving(where, eight_bits, device, len(self.blocks))
        kept.clear()
        kept.tokens = self.tokens and replace(self.tokens)  # of another length

    @property
    def kept_in_host(self) -> int:
        return self.trunk.driving.host_bytes if self.trunk.driving else 0

    @property
    def driving(self) -> Driving:
        assert self.trunk.driving is not None
        return self.trunk.driving

    def read_driving(self, latents: Tensor, branch: InContextBranch, width: int) -> None:
        """Run the blocks on the driving frames of a segment, and keep each block's keys and values.

        Args:
            latents: (1, 16, t, h', w') of the driving frames.
            branch: with the embedded prompt_ref and the CLIP features of the first driving frame.
            width: tokens in a row of the generated frames. The driving tokens' positions begin there.
        """
        driving, trunk, dtype = self.driving, self.trunk, self.dtype_of_weights
        driving.clear()
        latents = latents.to(dtype)
        x = self.patch_embedding(torch.cat([latents, torch.ones_like(latents[:, :4]), latents], dim=1))
        rotary = self._rotary(x.shape[2:], (TIME_OFFSET, 0, width))
        x, rotary = self.split(x.flatten(2).transpose(1, 2).contiguous(), rotary, driving.tokens)
        timestep = torch.tensor([DRIVING_TIMESTEP], device=x.device)
        _, modulation = self.embed_time(timestep)
        driving.steps = Pass(rotary, modulation)
        with self.cache_context(branch.name), _reading(driving):
            for index in range(len(self.blocks)):
                if driving.keeps_inputs:
                    driving.keep(index, x)
                x = trunk.run_block(index, x, branch, modulation, rotary)

    def denoise(self, latents: Tensor, timestep: Tensor, y: Tensor, branch: InContextBranch) -> Tensor:
        """Predict the flow of one denoising step. `read_driving` has run for the segment.

        Args:
            latents: (1, 16, T_lat + 1, h, w), the reference slot first.
            timestep: (1,) in 0..1000.
            y: (1, 20, T_lat + 1, h, w) mask and conditioning latents.
            branch: conditions of the guidance branch.

        Returns:
            (1, 16, T_lat + 1, h, w) in the model's dtype.
        """
        grid = latents.shape[2], latents.shape[3] // 2, latents.shape[4] // 2
        if self._tables is None or self._tables[0] != grid:
            self._tables = grid, self._rotary(grid, (0, 0, 0))
        return self.run(latents, timestep, y, branch, self._tables[1])

    def _rotary(self, grid: tuple[int, ...], offsets: tuple[int, int, int]) -> Rotary:
        """Rotary tables (1, S, 1, d/2) of a grid of tokens whose positions begin at `offsets`: time, row, column."""
        pairs = self.config["attention_head_dim"] // 2
        small = 2 * pairs // 6
        angles = []
        for axis, (length, offset, count) in enumerate(
            zip(grid, offsets, (pairs - 2 * small, small, small), strict=True)
        ):
            frequencies = THETA ** -(torch.arange(count, dtype=torch.float64) / count)
            shape = [1, 1, 1, count]
            shape[axis] = length
            positions = torch.arange(offset, offset + length, dtype=torch.float64)
            angles.append((positions[:, None] * frequencies).view(shape).expand(*grid, count))
        table = torch.cat(angles, -1).flatten(0, 2)[None, :, None]
        device = self.patch_embedding.weight.device
        return table.cos().float().to(device), table.sin().float().to(device)


@contextmanager
def _reading(driving: Driving) -> Iterator[None]:
    driving.order, driving.reading = range(driving.blocks), True
    try:
        yield
    finally:
        driving.reading = False
