"""Reads the transformer from a snapshot of either layout. The published original has no configuration."""

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from accelerate import init_empty_weights

from wan_orchestration.engine.layouts.fill import Loaded, converted_tensors
from wan_orchestration.engine.layouts.weight_files import safetensors_shapes
from wan_orchestration.errors import BadInput
from wan_orchestration.families.animate_2.transformer import Animate2Transformer
from wan_orchestration.weights.snapshot import Snapshot

HEAD_DIM = 128
EPS = 1e-6


def empty(snapshot: Snapshot) -> Animate2Transformer:
    """The transformer of a snapshot, without its weights."""
    shapes = {name: shape for file in _files(snapshot) for name, shape in safetensors_shapes(file).items()}
    try:
        config = _config(shapes, _heads(snapshot))
    except KeyError as missing:
        raise BadInput(f"{snapshot.path}: the transformer's tensor {missing.args[0]!r} is missing") from None
    with init_empty_weights():
        return Animate2Transformer(**config)


def published() -> Animate2Transformer:
    """The published 14B transformer, without its weights."""
    with init_empty_weights():
        return Animate2Transformer(in_channels=36, image_dim=1280, added_kv_proj_dim=5120)


def tensors(snapshot: Snapshot, only: Collection[str] | None = None) -> Iterator[Loaded]:
    """The transformer's tensors, file by file: all of them, or `only` those that hold weights of these names."""
    return converted_tensors(_files(snapshot), Animate2Transformer.converted, only)


def _files(snapshot: Snapshot) -> list[Path]:
    place = snapshot.transformer
    return sorted(place.glob("*.safetensors")) if place.is_dir() else [place]


def _heads(snapshot: Snapshot) -> int | None:
    """The number of attention heads, if a configuration tells it."""
    file = snapshot.file("config")
    return json.loads(file.read_text())["num_heads"] if file.is_file() else None


def _config(shapes: Mapping[str, tuple[int, ...]], heads: int | None) -> dict[str, Any]:
    """Arguments of `WanTransformer3DModel`: widths from the tensors, the rest as published."""
    dim, channels, *patch = shapes["patch_embedding.weight"]
    heads = heads or dim // HEAD_DIM
    first = "blocks.0.block." if "blocks.0.block.ffn.0.weight" in shapes else "blocks.0."
    return {
        "patch_size": tuple(patch),
        "num_attention_heads": heads,
        "attention_head_dim": dim // heads,
        "in_channels": channels,
        "out_channels": shapes["head.head.weight"][0] // (patch[0] * patch[1] * patch[2]),
        "text_dim": shapes["text_embedding.0.weight"][1],
        "freq_dim": shapes["time_embedding.0.weight"][1],
        "ffn_dim": shapes[f"{first}ffn.0.weight"][0],
        "num_layers": len({name.split(".")[1] for name in shapes if name.startswith("blocks.")}),
        "cross_attn_norm": True,
        "qk_norm": "rms_norm_across_heads",
        "eps": EPS,
        "image_dim": shapes["img_emb.proj.1.weight"][1],
        "added_kv_proj_dim": dim,
    }
