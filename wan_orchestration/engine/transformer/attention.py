"""Attention of the blocks: processors for diffusers' modules, and the kernels they use."""

import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from diffusers.models.transformers.transformer_wan_animate import WanAttention
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from wan_orchestration.engine.conditioning import TEXT_TOKENS
from wan_orchestration.engine.diffusers_internals import AttentionProcessor
from wan_orchestration.engine.memory.capacity import ran_out_of_memory
from wan_orchestration.engine.parallel.sequence import SplitTokens
from wan_orchestration.errors import BadInput

Rotary = tuple[Tensor, Tensor]
"""Cosines and sines of the rotary embedding, (1, S, 1, d / 2) float32."""

Keys = tuple[Tensor, Tensor, Tensor, Tensor]
"""Of a block's cross-attention, (1, n, heads, d): text keys, text values, image keys, image values."""


def _cudnn(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """cuDNN's kernel, without the copies of all three tensors that diffusers' backend makes."""
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return F.scaled_dot_product_attention(
            query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
        ).transpose(1, 2)


def _flash4(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """FlashAttention 4, from the package flash-attn-4. diffusers supports only a build from the Hugging Face Hub."""
    from flash_attn.cute import flash_attn_func  # noqa: PLC0415  # pyright: ignore[reportMissingImports]

    attended = flash_attn_func(query, key, value)
    return attended[0] if isinstance(attended, tuple) else attended


def _native_with_lse(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    if query.device.type == "cpu":
        attended, lse, *_ = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)
    elif query.dtype == torch.float32:
        attended, lse, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, None, True)
    else:
        attended, lse, *_ = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)
    return attended.transpose(1, 2), _trimmed(lse, query)


def _cudnn_with_lse(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    attended, lse, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(q, k, v, None, True)
    return attended.transpose(1, 2), _trimmed(lse, query)


def _flash2_with_lse(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    from flash_attn import flash_attn_func  # noqa: PLC0415  # pyright: ignore[reportMissingImports]

    attended, lse, _ = flash_attn_func(query, key, value, return_attn_probs=True)
    return attended, lse


def _flash3_with_lse(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    from flash_attn_interface import flash_attn_func  # noqa: PLC0415  # pyright: ignore[reportMissingImports]

    attended, lse, *_ = flash_attn_func(query, key, value, return_attn_probs=True)
    return attended, lse


def _flash4_with_lse(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    from flash_attn.cute import flash_attn_func  # noqa: PLC0415  # pyright: ignore[reportMissingImports]

    attended, lse, *_ = flash_attn_func(query, key, value, return_lse=True)
    return attended, lse


def _sage_with_lse(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    from sageattention import sageattn  # noqa: PLC0415  # pyright: ignore[reportMissingImports]

    return sageattn(query, key, value, tensor_layout="NHD", return_lse=True)


def _trimmed(lse: Tensor, query: Tensor) -> Tensor:
    """(n, heads, S) of a kernel's log-sum-exp. Some kernels pad S; cuDNN adds a dimension."""
    return lse.flatten(2)[:, :, : query.shape[1]]


KERNELS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "native": partial(dispatch_attention_fn, backend=AttentionBackendName.NATIVE),
    "cudnn": _cudnn,
    "flash2": partial(dispatch_attention_fn, backend=AttentionBackendName.FLASH),
    "flash3": partial(dispatch_attention_fn, backend=AttentionBackendName("_flash_3")),
    "flash4": _flash4,
    "sage": partial(dispatch_attention_fn, backend=AttentionBackendName.SAGE),
}
"""By name: functions of queries, keys and values (1, S, heads, d) that return (1, S, heads, d)."""
EXACT = ("native", "cudnn", "flash2", "flash3", "flash4")
"""All kernels except sage, which computes in 8 bits."""
PACKAGES = {
    "flash2": "flash_attn",
    "flash3": "flash_attn_interface",
    "flash4": "flash_attn.cute",
    "sage": "sageattention",
}
"""Modules of the kernels that do not come with PyTorch."""
KERNELS_WITH_LSE: dict[str, Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "native": _native_with_lse,
    "cudnn": _cudnn_with_lse,
    "flash2": _flash2_with_lse,
    "flash3": _flash3_with_lse,
    "flash4": _flash4_with_lse,
    "sage": _sage_with_lse,
}
"""By name: the same kernels, which also return the log of the sum of the exponentials, (n, heads, S) float32. Here n
sequences may be given."""
PROBED_TOKENS = 16384
"""Sequence length at which the kernels are timed."""


class SelfAttention(AttentionProcessor):
    """Processor of a block's self-attention, on all tokens or on this rank's. `blocks.Block` calls its methods."""

    def __init__(self, kernel: str, tokens: SplitTokens | None) -> None:
        self.kernel, self.tokens = KERNELS[kernel], tokens

    @staticmethod
    def project(attn: WanAttention, x: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (1, S, heads, d) of tokens (1, S, dim), each token separately."""
        query, key, value = (
            x.unflatten(2, (attn.heads, -1))
            for x in (attn.norm_q(attn.to_q(x)), attn.norm_k(attn.to_k(x)), attn.to_v(x))
        )
        return rotate(query, rotary), rotate(key, rotary), value

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attention over all tokens: (1, S, dim) of queries, keys and values (1, S, heads, d)."""
        if self.tokens:
            query, key, value = self.tokens.heads_for_tokens(torch.cat([query, key, value])).unsqueeze(1)
        attended = self.kernel(query, key, value)
        if self.tokens:
            attended = self.tokens.tokens_for_heads(attended)
        return attended.flatten(2, 3).type_as(query)


class CrossAttention(AttentionProcessor):
    """Processor of a block's attention to text and image. It accepts keys and values computed in advance."""

    def __call__(
        self,
        attn: WanAttention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | Keys | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: Rotary | None = None,
    ) -> Tensor:
        """(1, S, dim) to (1, S, dim). The context is tokens (1, image tokens + 512, dim), or their `cross_keys`."""
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
    """Keys and values of a block's cross-attention, which depend on the context (1, image tokens + 512, dim) only."""
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
    """Apply the rotary position embedding to (1, S, heads, d), in float32. Neighbouring channels form a pair."""
    cos, sin = rotary
    pairs = x.float().unflatten(-1, (-1, 2))
    if torch.compiler.is_compiling():  # the compiler fuses real numbers, but does not support complex ones
        even, odd = pairs.unbind(-1)
        return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2).type_as(x)
    turned = torch.view_as_complex(pairs.contiguous()) * torch.complex(cos, sin)
    return torch.view_as_real(turned).flatten(-2).type_as(x)


def choose_backend(
    wanted: str, device: torch.device, dtype: torch.dtype, heads: int, width: int, with_lse: bool = False
) -> str:
    """The name of the attention kernel to use: the wanted one, or for "auto" the fastest exact one on this device.

    `with_lse`: it must be in KERNELS_WITH_LSE, and return the log-sum-exp on this device.

    Raises:
        BadInput: the wanted kernel does not run on this device.
    """
    if wanted == "auto":
        return _fastest(device, dtype, heads, width, with_lse)
    try:
        _seconds(wanted, device, dtype, heads, width, 128, with_lse)
    except Exception as error:
        if ran_out_of_memory(error):
            raise
        package = PACKAGES.get(wanted, "torch")
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        reason = reason if _is_installed(package) else f"the package {package} is not installed"
        what = f"{wanted} with a log-sum-exp, which this model needs," if with_lse else wanted
        raise BadInput(f"attention: {what} does not run on this {device.type} device ({reason}); use auto") from None
    return wanted


@cache
def _fastest(device: torch.device, dtype: torch.dtype, heads: int, width: int, with_lse: bool) -> str:
    if device.type == "cpu":
        return "native"
    seconds = {}
    for name in EXACT:
        with suppress(Exception):  # not installed, or it does not support this device or dtype
            seconds[name] = _seconds(name, device, dtype, heads, width, PROBED_TOKENS, with_lse)
    return min(seconds, key=lambda name: seconds[name], default="native")


def _seconds(
    name: str, device: torch.device, dtype: torch.dtype, heads: int, width: int, tokens: int, with_lse: bool
) -> float:
    """Time of the second call. The first may compile or load something."""
    x = torch.randn(1, tokens, heads, width, device=device, dtype=dtype)
    started = 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch warns at length of each kernel that cannot be used
        for _ in range(2):
            started = time.perf_counter()
            (KERNELS_WITH_LSE if with_lse else KERNELS)[name](x, x, x)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
    return time.perf_counter() - started


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the package that holds the module is missing
        return False
    except (ImportError, OSError):  # it is broken
        return True
