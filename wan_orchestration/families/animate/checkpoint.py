"""Reads the transformer from a snapshot of either layout. Widths that `config.json` lacks come from tensor shapes."""

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from accelerate import init_empty_weights

from wan_orchestration.engine.layouts.diffusers import configured, diffusers_tensors
from wan_orchestration.engine.layouts.fill import Loaded, converted_tensors
from wan_orchestration.engine.layouts.weight_files import safetensors_shapes
from wan_orchestration.errors import BadInput
from wan_orchestration.families.animate.transformer import AnimateTransformer
from wan_orchestration.weights.snapshot import Snapshot

MOTION_ENCODER_SIZE = 512
MOTION_ENCODER_BLOCKS = 7  # 512 -> 4 pixels


def empty(snapshot: Snapshot) -> AnimateTransformer:
    """The transformer of a snapshot, without its weights."""
    with init_empty_weights():
        if snapshot.layout == "diffusers":
            return configured(AnimateTransformer, snapshot.transformer)
        return AnimateTransformer(**_original_config(snapshot))


def published() -> AnimateTransformer:
    """The published 14B transformer, without its weights."""
    with init_empty_weights():
        return AnimateTransformer(added_kv_proj_dim=5120)


def tensors(snapshot: Snapshot, only: Collection[str] | None = None) -> Iterator[Loaded]:
    """The transformer's tensors, file by file: all of them, or `only` those that hold weights of these names."""
    if snapshot.layout == "diffusers":
        return diffusers_tensors(snapshot.transformer, only)
    # The blur kernels are buffers of the class.
    return converted_tensors(_shards(snapshot.transformer), AnimateTransformer.converted, only, leave_out=".kernel")


def _original_config(snapshot: Snapshot) -> dict[str, Any]:
    """Arguments of `WanAnimateTransformer3DModel`, from `config.json` and the shapes in the shards."""
    config = json.loads(snapshot.file("config").read_text())
    shards = _shards(snapshot.transformer)
    shapes = {name: shape for shard in shards for name, shape in safetensors_shapes(shard).items()}
    try:
        return _transformer_config(config, shapes)
    except KeyError as missing:
        raise BadInput(
            f"{snapshot.path}: the transformer's {missing.args[0]!r} is in neither config.json nor the safetensors "
            "shards; the snapshot is incomplete or of another model"
        ) from None


def _transformer_config(config: dict[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    dim, heads, layers = config["dim"], config["num_heads"], config["num_layers"]
    hidden = shapes["face_encoder.conv2.conv.weight"][0]
    adapters = {name.split(".")[2] for name in shapes if name.startswith("face_adapter.fuser_blocks.")}
    convs = "motion_encoder.enc.net_app.convs"
    channels = {str(MOTION_ENCODER_SIZE): shapes[f"{convs}.0.0.weight"][0]}
    for i in range(1, MOTION_ENCODER_BLOCKS + 1):
        channels[str(MOTION_ENCODER_SIZE >> i)] = shapes[f"{convs}.{i}.conv2.1.weight"][0]
    return {
        "patch_size": tuple(config["patch_size"]),
        "num_attention_heads": heads,
        "attention_head_dim": dim // heads,
        "in_channels": config["in_dim"],
        "latent_channels": shapes["pose_patch_embedding.weight"][1],
        "out_channels": config["out_dim"],
        "text_dim": config.get("text_dim", shapes["text_embedding.0.weight"][1]),
        "freq_dim": config["freq_dim"],
        "ffn_dim": config["ffn_dim"],
        "num_layers": layers,
        "cross_attn_norm": config["cross_attn_norm"],
        "qk_norm": "rms_norm_across_heads" if config["qk_norm"] else None,
        "eps": config["eps"],
        "image_dim": shapes["img_emb.proj.1.weight"][1],
        "added_kv_proj_dim": dim,
        "motion_encoder_channel_sizes": channels,
        "motion_encoder_size": MOTION_ENCODER_SIZE,
        "motion_style_dim": shapes[f"{convs}.{MOTION_ENCODER_BLOCKS + 1}.weight"][0],
        "motion_dim": shapes["motion_encoder.dec.direction.weight"][1],
        "motion_encoder_dim": config["motion_encoder_dim"],
        "face_encoder_hidden_dim": hidden,
        "face_encoder_num_heads": shapes["face_encoder.conv1_local.conv.weight"][0] // hidden,
        "inject_face_latents_blocks": layers // len(adapters),
    }


def _shards(index: Path) -> list[Path]:
    """The files that an index of shards names."""
    return [index.with_name(name) for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
