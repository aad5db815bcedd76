"""Tensors that are split over ranks: join the parts, and pad them to equal lengths."""

import torch
import torch.distributed as dist
from torch import Tensor


def gather(part: Tensor, sizes: list[int], dim: int, group: dist.ProcessGroup | None = None) -> Tensor:
    """Join the parts of all ranks of a group along `dim`. `sizes` are the lengths of the parts, which may differ."""
    # Gloo needs equal lengths. NCCL and gloo both join along the first dimension only.
    padded = pad(part.movedim(dim, 0), 0, max(sizes)).contiguous()
    whole = padded.new_empty(len(sizes) * len(padded), *padded.shape[1:])
    dist.all_gather_into_tensor(whole, padded, group=group)
    parts = [one[:size] for one, size in zip(whole.split(len(padded)), sizes, strict=True)]
    return torch.cat(parts).movedim(0, dim).contiguous()


def pad(x: Tensor, dim: int, length: int) -> Tensor:
    """Append zeros along a dimension up to `length`."""
    missing = list(x.shape)
    missing[dim] = length - x.shape[dim]
    return torch.cat([x, x.new_zeros(missing)], dim) if missing[dim] else x
