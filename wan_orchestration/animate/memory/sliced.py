"""The transformer's blocks with little memory: all but self-attention treats tokens one by one, so a slice at a time.

The same arithmetic as `WanTransformerBlock`, whose intermediate results of all tokens take twice the memory.
"""

from collections.abc import Iterator
from typing import Any

import torch
from diffusers.models.transformers.transformer_wan_animate import (
    WanAnimateFaceBlockCrossAttention,
    WanTransformerBlock,
)
from torch import Tensor, nn

from wan_orchestration.animate.attention import SelfAttention
from wan_orchestration.animate.sequence import FaceAttention

TOKENS = 4096
"""In a slice: enough to keep a device busy."""


class SlicedBlock(WanTransformerBlock):
    """A block of the transformer that works on a slice of the tokens at a time."""

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Any,
        temb: Tensor,
        rotary_emb: Any,
    ) -> Tensor:
        """(1, S, dim) tokens to (1, S, dim); the context as for `CrossAttention`, the rotary tables a pair."""
        x, attention = hidden_states, self.attn1.processor
        assert isinstance(attention, SelfAttention)
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = (self.scale_shift_table + temb.float()).chunk(6, dim=1)

        heads = self.attn1.heads
        query, key, value = (x.new_empty(*x.shape[:2], heads, x.shape[2] // heads) for _ in range(3))
        for part in slices(x.shape[1], TOKENS):
            normed = (self.norm1(x[:, part].float()) * (1 + scale) + shift).type_as(x)
            rotary = rotary_emb[0][:, part], rotary_emb[1][:, part]
            query[:, part], key[:, part], value[:, part] = attention.project(self.attn1, normed, rotary)
        attended = attention.attend(query, key, value)
        del query, key, value

        result = torch.empty_like(x)
        for part in slices(x.shape[1], TOKENS):
            y = (x[:, part].float() + self.attn1.to_out[0](attended[:, part]) * gate).type_as(x)
            y = y + self.attn2(self.norm2(y.float()).type_as(y), encoder_hidden_states, None, None)
            normed = (self.norm3(y.float()) * (1 + ffn_scale) + ffn_shift).type_as(y)
            result[:, part] = (y.float() + self.ffn(normed).float() * ffn_gate).type_as(y)
        return result


class SlicedFaceAdapter(WanAnimateFaceBlockCrossAttention):
    """A face adapter that works on some latent frames at a time, to which its attention is confined anyway."""

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """(1, S, dim) tokens of (1, T, n, dim) face features' latent frames to (1, S, dim)."""
        assert encoder_hidden_states is not None
        if isinstance(self.processor, FaceAttention):  # a rank's few tokens, cut anywhere
            return super().forward(hidden_states, encoder_hidden_states, attention_mask)
        frames = encoder_hidden_states.shape[1]
        of_one, result = hidden_states.shape[1] // frames, torch.empty_like(hidden_states)
        for part in slices(frames, max(1, TOKENS // of_one)):
            tokens = slice(part.start * of_one, part.stop * of_one)
            result[:, tokens] = super().forward(hidden_states[:, tokens], encoder_hidden_states[:, part])
        return result


def work_in_slices(blocks: nn.ModuleList, face_adapters: nn.ModuleList) -> None:
    """Have a transformer's blocks and face adapters work on slices from now on."""
    for block in blocks:
        block.__class__ = SlicedBlock
    for adapter in face_adapters:
        adapter.__class__ = SlicedFaceAdapter


def slices(count: int, most: int) -> Iterator[slice]:
    """Slices of up to `most` that make up `count`."""
    for start in range(0, count, most):
        yield slice(start, min(start + most, count))
