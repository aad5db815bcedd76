"""LoRA files for the snapshots of `benchmarks/random_snapshot.py`."""

from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import save_file

DIM = 128
WIDTHS = {"time_projection.1": 6 * DIM, "face_adapter.fuser_blocks.0.linear1_kv": 2 * DIM, "head.head": 64}
"""Rows of the modules' weights that are not square."""
STYLE = {
    "blocks.0.self_attn.q",
    "blocks.4.cross_attn.k_img",
    "time_projection.1",
    "face_adapter.fuser_blocks.0.linear1_kv",
}
MOTION = {"blocks.0.self_attn.q", "blocks.2.self_attn.o", "head.head"}
"""One module is in both."""


def write_lora(file: Path, modules: Iterable[str], seed: int = 0) -> Path:
    """Write a LoRA of rank 4 for modules by their original names."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for module in sorted(modules):
        tensors[f"{module}.lora_A.weight"] = torch.randn(4, DIM, generator=generator) / 8
        tensors[f"{module}.lora_B.weight"] = torch.randn(WIDTHS.get(module, DIM), 4, generator=generator) / 8
    save_file(tensors, file)
    return file
