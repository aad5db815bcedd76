"""Private parts of PyTorch that the engine needs, each with the reason. A new version of torch may change them."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


def mark_dynamic(x: Tensor, dim: int) -> None:
    """Let one compiled graph serve all lengths of `dim`.

    The public `torch.compile(dynamic=True)` would make every dimension dynamic, which gives slower kernels.
    """
    torch._dynamo.maybe_mark_dynamic(x, dim)


def raise_for_too_many_graphs() -> type[Exception]:
    """Make a compiled function raise the returned error if it needs one graph more than PyTorch allows.

    By default it logs a warning, and from then on runs uncompiled.
    """
    from torch._dynamo.exc import FailOnRecompileLimitHit  # noqa: PLC0415 (takes seconds)

    torch._dynamo.config.fail_on_recompile_limit_hit = True
    return FailOnRecompileLimitHit


def abort_nccl() -> None:
    """Free the threads that wait in an NCCL collective. The public `destroy_process_group` would wait with them."""
    dist.distributed_c10d._abort_process_group()


def onednn_convolves(dtype: torch.dtype) -> bool:
    """Whether oneDNN has a convolution in this dtype for this CPU. In bfloat16 it needs AVX-512 or similar.

    `torch.backends.mkldnn` says only whether oneDNN is there.
    """
    if not torch.backends.mkldnn.is_available():
        return False
    return dtype != torch.bfloat16 or torch.ops.mkldnn._is_mkldnn_bf16_supported()


def onednn_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, padding: list[int], stride: tuple[int, ...]
) -> Tensor:
    """oneDNN's convolution. `F.conv3d` can use it too, but takes a far slower path for few frames and channels."""
    return torch.ops.aten.mkldnn_convolution(x, weight, bias, padding, stride, [1] * len(padding), 1)


def plain_tensors(parameter: Tensor) -> list[Tensor]:
    """The plain tensors that a parameter consists of: itself, or the parts of a quantised one.

    torchao's quantised tensors have no public way to reach their parts; `__tensor_flatten__` is PyTorch's protocol.
    """
    if not is_traceable_wrapper_subclass(parameter):
        return [parameter.detach()]
    names, _ = parameter.__tensor_flatten__()
    return [getattr(parameter, name) for name in names]


def from_plain_tensors(parameter: Tensor, tensors: list[Tensor]) -> Tensor:
    """A tensor of the same kind as `parameter`, made of other plain tensors. The inverse of `plain_tensors`."""
    if not is_traceable_wrapper_subclass(parameter):
        return tensors[0]
    names, context = parameter.__tensor_flatten__()
    kind: Any = type(parameter)
    parts = dict(zip(names, tensors, strict=True))
    return kind.__tensor_unflatten__(parts, context, parameter.shape, parameter.stride())
