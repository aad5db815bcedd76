"""Attention of the transformer's blocks: what diffusers' modules call, and which kernel computes it."""

import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial

import torch
import torch.nn.functional as F
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from diffusers.models.transformers.transformer_wan_animate import WanAttention
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from wan_orchestration.animate.conditioning import TEXT_TOKENS
from wan_orchestration.animate.memory.room import ran_out_of_memory
from wan_orchestration.animate.parallel.sequence import Rotary, SplitTokens
from wan_orchestration.errors import BadInput

Keys = tuple[Tensor, Tensor, Tensor, Tensor]
"""Keys and values of a block's cross-attention, (1, n, heads, d): those of the text, then those of the image."""


def _cudnn(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """cuDNN's kernel, on the tensors as they lie in memory; diffusers' way to it copies all three."""
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return F.scaled_dot_product_attention(
            query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
        ).transpose(1, 2)


def _flash4(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """FlashAttention 4, the package flash-attn-4, which diffusers fetches from a hub only."""
    from flash_attn.cute import flash_attn_func  # noqa: PLC0415  # pyright: ignore[reportMissingImports]

    attended = flash_attn_func(query, key, value)
    return attended[0] if isinstance(attended, tuple) else attended


KERNELS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "native": partial(dispatch_attention_fn, backend=AttentionBackendName.NATIVE),
    "cudnn": _cudnn,
    "flash2": partial(dispatch_attention_fn, backend=AttentionBackendName.FLASH),
    "flash3": partial(dispatch_attention_fn, backend=AttentionBackendName._FLASH_3),
    "flash4": _flash4,
    "sage": partial(dispatch_attention_fn, backend=AttentionBackendName.SAGE),
}
"""What computes attention of queries, keys and values (1, S, heads, d), to (1, S, heads, d), by its name."""
EXACT = ("native", "cudnn", "flash2", "flash3", "flash4")
"""All but sage, which computes in 8 bits."""
PROBED_TOKENS = 16384


class SelfAttention:
    """Processor of a block's self-attention, on all tokens or on this rank's; see `blocks.Block`, which calls it."""

    # diffusers looks for these on any processor; parallelism of its own it must not add.
    _attention_backend = None
    _parallel_config = None

    def __init__(self, kernel: str, tokens: SplitTokens | None) -> None:
        self.kernel, self.tokens = KERNELS[kernel], tokens

    @staticmethod
    def project(attn: WanAttention, x: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (1, S, heads, d) of tokens (1, S, dim), each by itself."""
        query, key, value = (
            x.unflatten(2, (attn.heads, -1))
            for x in (attn.norm_q(attn.to_q(x)), attn.norm_k(attn.to_k(x)), attn.to_v(x))
        )
        return rotate(query, rotary), rotate(key, rotary), value

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """What all tokens together make of queries, keys and values (1, S, heads, d): (1, S, dim)."""
        if self.tokens:
            query, key, value = self.tokens.heads_for_tokens(torch.cat([query, key, value])).unsqueeze(1)
        attended = self.kernel(query, key, value)
        if self.tokens:
            attended = self.tokens.tokens_for_heads(attended)
        return attended.flatten(2, 3).type_as(query)


class CrossAttention:
    """Processor of a block's attention to text and image, whose keys and values may have been computed before."""

    _attention_backend = None
    _parallel_config = None

    def __call__(
        self,
        attn: WanAttention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | Keys | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: Rotary | None = None,
    ) -> Tensor:
        """(1, S, dim) to (1, S, dim); the context as tokens (1, image tokens + 512, dim) or as `cross_keys` of it."""
        assert encoder_hidden_states is not None
        assert attention_mask is None
        assert rotary_emb is None
        keys = encoder_hidden_states
        if isinstance(keys, Tensor):
            keys = cross_keys(attn, keys)
        text_key, text_value, image_key, image_value = keys
        query = attn.norm_q(attn.to_q(hidden_states)).unflatten(2, (attn.heads, -1))
        attended = dispatch_attention_fn(query, text_key, text_value).flatten(2, 3)
        attended = attended + dispatch_attention_fn(query, image_key, image_value).flatten(2, 3)
        return attn.to_out[0](attended.type_as(query))


def cross_keys(attn: WanAttention, context: Tensor) -> Keys:
    """What a block's cross-attention computes of the context alone."""
    assert attn.add_k_proj is not None
    assert attn.add_v_proj is not None
    image, text = context.split([context.shape[1] - TEXT_TOKENS, TEXT_TOKENS], dim=1)
    keys = (
        attn.norm_k(attn.to_k(text)),
        attn.to_v(text),
        attn.norm_added_k(attn.add_k_proj(image)),
        attn.add_v_proj(image),
    )
    text_key, text_value, image_key, image_value = (x.unflatten(2, (attn.heads, -1)) for x in keys)
    return text_key, text_value, image_key, image_value


def rotate(x: Tensor, rotary: Rotary) -> Tensor:
    """Rotary position embedding of (1, S, heads, d), whose pairs of channels are neighbours, in float32.

    Tables are cosines and sines, (1, S, 1, d / 2).
    """
    cos, sin = rotary
    pairs = x.float().unflatten(-1, (-1, 2))
    if torch.compiler.is_compiling():  # fuses the real form; complex numbers it does not know
        even, odd = pairs.unbind(-1)
        return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2).type_as(x)
    turned = torch.view_as_complex(pairs.contiguous()) * torch.complex(cos, sin)
    return torch.view_as_real(turned).flatten(-2).type_as(x)


def choose_backend(wanted: str, device: torch.device, dtype: torch.dtype, heads: int, width: int) -> str:
    """The attention kernel to use: the one asked for, or of the exact ones the fastest here.

    Raises:
        BadInput: the one asked for does not run on this device.
    """
    if wanted == "auto":
        return _fastest(device, dtype, heads, width)
    try:
        _seconds(wanted, device, dtype, heads, width, tokens=128)
    except Exception as error:
        if ran_out_of_memory(error):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BadInput(f"attention: {wanted} does not run on this {device.type} device ({reason}); use auto") from None
    return wanted


@cache
def _fastest(device: torch.device, dtype: torch.dtype, heads: int, width: int) -> str:
    if device.type == "cpu":
        return "native"
    seconds = {}
    for name in EXACT:
        with suppress(Exception):  # not installed, or not for this device or dtype
            seconds[name] = _seconds(name, device, dtype, heads, width, PROBED_TOKENS)
    return min(seconds, key=lambda name: seconds[name], default="native")


def _seconds(name: str, device: torch.device, dtype: torch.dtype, heads: int, width: int, tokens: int) -> float:
    """Time of the second call; the first may compile or load something."""
    x = torch.randn(1, tokens, heads, width, device=device, dtype=dtype)
    started = 0.0
    for _ in range(2):
        started = time.perf_counter()
        KERNELS[name](x, x, x)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return time.perf_counter() - started
