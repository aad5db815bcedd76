"""Self-attention of generated tokens to each other and to their own frame of the driving video."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from wan_orchestration.engine.parallel.sequence import SplitTokens
from wan_orchestration.engine.transformer.attention import KERNELS_WITH_LSE, SelfAttention
from wan_orchestration.engine.transformer.blocks import SLICE, Block, slices
from wan_orchestration.families.animate_2.driving import Driving, Window

Part = tuple[Tensor, Tensor]
"""Attention to some of the keys: the result (n, S, heads, d), and the log-sum-exp (n, heads, S)."""


class InContextAttention(SelfAttention):
    """Processor of a block's self-attention.

    While the driving tokens run, they attend to each other, and their keys and values are kept. Generated tokens attend
    to all generated tokens, and those of frame j, from 1 on, to the driving tokens of frame j - 1.
    """

    def __init__(
        self, kernel: str, tokens: SplitTokens | None, driving: Callable[[], Driving], index: int, block: Block
    ) -> None:
        self.kernel, self.tokens = KERNELS_WITH_LSE[kernel], tokens
        self._driving, self.index, self.block = driving, index, block

    @property
    def driving(self) -> Driving:
        return self._driving()

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Any:
        """(1, S, dim) of queries, keys and values (1, S, heads, d). None for the last block's driving tokens."""
        driving = self.driving
        tokens = driving.tokens if driving.reading else self.tokens
        if tokens:
            query, key, value = tokens.heads_for_tokens(torch.cat([query, key, value])).unsqueeze(1)
        if not driving.reading:
            with driving.of(self.index) as kept:
                attended = in_context(self.kernel, query, key, value, *self._keys(*kept), driving.window)
        else:
            if not driving.keeps_inputs:
                driving.keep(self.index, key, value)
            if self.index == driving.order[-1]:
                return None
            attended = self.kernel(query, key, value)[0]
        if tokens:
            attended = tokens.tokens_for_heads(attended)
        return attended.flatten(2, 3).type_as(query)

    def _keys(self, *kept: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of all driving tokens, from what was kept."""
        if not self.driving.keeps_inputs:
            key, value = kept
            return key, value
        (x,), steps, block = kept, self.driving.steps, self.block
        assert steps is not None
        (cos, sin), run = steps.rotary, block.compilation.run
        shift, scale, *_ = (block.scale_shift_table + steps.modulation.float()).chunk(6, dim=1)
        key, value = (x.new_empty(*x.shape[:2], block.attn1.heads, x.shape[2] // block.attn1.heads) for _ in range(2))
        for part in slices(x.shape[1], SLICE if block.sliced else x.shape[1]):
            _, key[:, part], value[:, part] = run(
                Block.before_attention, block, x[:, part], cos[:, part], sin[:, part], shift, scale
            )
        if self.driving.tokens:
            key, value = self.driving.tokens.heads_for_tokens(torch.cat([key, value])).unsqueeze(1)
        return key, value


def in_context(
    kernel: Any, query: Tensor, key: Tensor, value: Tensor, driving_key: Tensor, driving_value: Tensor, window: Window
) -> Tensor:
    """Attention of generated tokens, (1, S, heads, d), frame after frame in S.

    Args:
        kernel: one of KERNELS_WITH_LSE.
        query, key, value: of the generated tokens, (1, S, heads, d).
        driving_key, driving_value: (1, S', heads, d); their frame j - 1 belongs to generated frame j.
        window: how many tokens a frame has, and how many places are empty.
    """
    queries = query.unflatten(1, (-1, window.tokens))[0]
    seen_key, seen_value = (x.unflatten(1, (-1, window.driving_tokens))[0] for x in (driving_key, driving_value))
    groups = [
        (key[:, part], value[:, part], scale)
        for part, scale in _groups(window, queries.shape[0])
        if key[:, part].numel()
    ]
    result = torch.empty_like(queries)
    # Some frames at a time: the parts that are merged are as large as the queries.
    for part in [slice(0, 1), *_later(queries.shape[0], max(1, SLICE // window.tokens))]:
        some = queries[part]
        flat = some.flatten(0, 1)[None]
        parts = [_raised(kernel(flat, *seen), scale, len(some)) for *seen, scale in groups]
        empty = window.empty + window.empty_first * math.exp(window.log_scale)
        if part.start:
            frames = slice(part.start - 1, part.stop - 1)
            parts.append(kernel(some, seen_key[frames], seen_value[frames]))
            empty += window.empty_driving
        result[part] = _merged(parts, empty)
    return result.flatten(0, 1)[None]


def _later(frames: int, at_once: int) -> list[slice]:
    """Slices of the frames from 1 on."""
    return [slice(part.start + 1, part.stop + 1) for part in slices(frames - 1, at_once)]


def _groups(window: Window, frames: int) -> list[tuple[slice, float]]:
    """Generated tokens by what is added to the logits of their keys."""
    if not window.log_scale:
        return [(slice(0, frames * window.tokens), 0.0)]
    first, second = window.tokens, 2 * window.tokens
    groups = [(slice(0, first), 0.0), (slice(first, second), window.log_scale)]
    return groups + ([(slice(second, frames * window.tokens), 0.0)] if frames > 2 else [])


def _raised(part: Part, scale: float, frames: int) -> Part:
    """A part of flat queries by frame, (frames, S, heads, d), as if `scale` had been added to its logits."""
    attended, lse = part
    return attended[0].unflatten(0, (frames, -1)), lse[0].unflatten(1, (frames, -1)).transpose(0, 1) + scale


def _merged(parts: list[Part], empty: float) -> Tensor:
    """Attention to the keys of all parts, and to `empty` keys of logit 0 whose values are zero."""
    sums = [lse.transpose(1, 2)[..., None] for _, lse in parts]  # (n, S, heads, 1)
    total = torch.logsumexp(torch.stack(sums), 0) if len(sums) > 1 else sums[0]
    if empty:
        total = torch.logaddexp(total, total.new_tensor(math.log(empty)))
    merged = sum((attended.float() * (one - total).exp() for (attended, _), one in zip(parts, sums, strict=True)))
    assert isinstance(merged, Tensor)
    return merged.type_as(parts[0][0])
