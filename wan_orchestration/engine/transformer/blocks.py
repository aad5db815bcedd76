"""The transformer's blocks, which can run compiled and on slices of the tokens.

A block does the same arithmetic as diffusers' `WanTransformerBlock`, in two parts: before and after self-attention.
Both parts treat each token separately, so they can be compiled, and they can work on one slice of the tokens at a time
where memory is short: the intermediate results of all tokens at once double the peak. The attention kernel and the
exchange between ranks are neither compiled nor sliced.
"""

from collections.abc import Iterator
from typing import Any

import torch
from diffusers.models.transformers.transformer_wan_animate import WanTransformerBlock
from torch import Tensor, nn

from wan_orchestration.engine.transformer.compilation import Compilation

SLICE = 4096
"""Tokens in a slice: enough to keep a GPU busy."""


class Block(WanTransformerBlock):
    """A block of the transformer. Its self-attention needs a processor such as `attention.SelfAttention`.

    If the processor's `attend` returns None, the block returns its input: only the keys and values were wanted.
    """

    sliced = False
    """Whether to work on slices of the tokens: less memory, the same result."""
    compilation = Compilation(wanted=False)

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Any,
        temb: Tensor,
        rotary_emb: Any,
    ) -> Tensor:
        """(1, S, dim) tokens to (1, S, dim). The context is as for `CrossAttention`; `rotary_emb` is a `Rotary`."""
        x, (cos, sin), run = hidden_states, rotary_emb, self.compilation.run
        attention: Any = self.attn1.processor
        shift, scale, *after = (self.scale_shift_table + temb.float()).chunk(6, dim=1)
        if not self.sliced:
            query, key, value = run(Block.before_attention, self, x, cos, sin, shift, scale)
            attended = attention.attend(query, key, value)
            del query, key, value
            if attended is None:
                return x
            return run(Block.after_attention, self, x, attended, encoder_hidden_states, *after)

        heads = self.attn1.heads
        query, key, value = (x.new_empty(*x.shape[:2], heads, x.shape[2] // heads) for _ in range(3))
        for part in slices(x.shape[1], SLICE):
            query[:, part], key[:, part], value[:, part] = run(
                Block.before_attention, self, x[:, part], cos[:, part], sin[:, part], shift, scale
            )
        attended = attention.attend(query, key, value)
        del query, key, value
        if attended is None:
            return x
        result = torch.empty_like(x)
        for part in slices(x.shape[1], SLICE):
            result[:, part] = run(
                Block.after_attention, self, x[:, part], attended[:, part], encoder_hidden_states, *after
            )
        return result

    def before_attention(
        self, x: Tensor, cos: Tensor, sin: Tensor, shift: Tensor, scale: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (1, n, heads, d) of tokens (1, n, dim). Shift and scale are (1, 1, dim)."""
        normed = (self.norm1(x.float()) * (1 + scale) + shift).type_as(x)
        attention: Any = self.attn1.processor
        return attention.project(self.attn1, normed, (cos, sin))

    def after_attention(
        self,
        x: Tensor,
        attended: Tensor,
        context: Any,
        gate: Tensor,
        ffn_shift: Tensor,
        ffn_scale: Tensor,
        ffn_gate: Tensor,
    ) -> Tensor:
        """The block's result (1, n, dim) from its tokens and the output of self-attention, both (1, n, dim)."""
        x = (x.float() + self.attn1.to_out[0](attended) * gate).type_as(x)
        x = x + self.attn2(self.norm2(x.float()).type_as(x), context, None, None)
        normed = (self.norm3(x.float()) * (1 + ffn_scale) + ffn_shift).type_as(x)
        return (x.float() + self.ffn(normed).float() * ffn_gate).type_as(x)


def use_own_blocks(blocks: nn.ModuleList) -> None:
    """Turn diffusers' blocks into the class above. They keep their weights."""
    for block in blocks:
        block.__class__ = Block


def slices(count: int, most: int) -> Iterator[slice]:
    """Slices of up to `most` that together cover `count`."""
    for start in range(0, count, most):
        yield slice(start, min(start + most, count))
