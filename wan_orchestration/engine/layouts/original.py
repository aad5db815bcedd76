"""The original (ModelScope) snapshot layout: configurations and tensors for the diffusers and transformers classes.

Widths that `config.json` lacks are read from tensor shapes, so one loader opens the 14B snapshot and smaller ones.
The key maps of the transformer and the VAE are those of diffusers' single-file loader.
"""

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.single_file_utils import (
    convert_wan_transformer_to_diffusers,
    convert_wan_vae_to_diffusers,
)
from torch import Tensor

from wan_orchestration.engine.layouts.fill import Loaded
from wan_orchestration.engine.layouts.weight_files import read_safetensors, safetensors_shapes
from wan_orchestration.errors import BadInput
from wan_orchestration.families.family import TRANSFORMER

CLIP_HEAD_DIM = 80  # ViT-H/14: 1280 / 16. The fused projection does not show the number of heads.
MOTION_ENCODER_SIZE = 512
MOTION_ENCODER_BLOCKS = 7  # 512 -> 4 pixels


def transformer_config(snapshot: Path) -> dict[str, Any]:
    """Arguments of `WanAnimateTransformer3DModel`, from `config.json` and the shapes in the shards."""
    config = json.loads((snapshot / "config.json").read_text())
    shapes = {name: shape for shard in _shards(snapshot) for name, shape in safetensors_shapes(shard).items()}
    try:
        return _transformer_config(config, shapes)
    except KeyError as missing:
        raise BadInput(
            f"{snapshot}: the transformer's {missing.args[0]!r} is in neither config.json nor the safetensors shards; "
            "the snapshot is incomplete or of another model"
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


def transformer_tensors(snapshot: Path, only: Collection[str] | None = None) -> Iterator[Loaded]:
    """The transformer's tensors, shard by shard, without the blur kernels, which are buffers of the class.

    `only` limits them to those that hold weights of these names in the model class. No others are read.
    """

    def wanted(name: str, shape: tuple[int, ...]) -> bool:
        if name.endswith(".kernel"):
            return False
        return only is None or any(key in only for key in convert_transformer(name, torch.empty(shape, device="meta")))

    for shard in _shards(snapshot):
        for name, tensor in read_safetensors(shard, wanted):
            yield Loaded(shard, name, convert_transformer(name, tensor))


def convert_transformer(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """A tensor of the original transformer under its diffusers names. A fused key/value gives two tensors."""
    # The converter applies its Animate rules only if a face adapter is among the keys.
    hint = {} if "face_adapter" in name else {"face_adapter": tensor}
    converted = convert_wan_transformer_to_diffusers({name: tensor, **hint})
    return {key: value for key, value in converted.items() if key not in hint}


def vae_config(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Arguments of `AutoencoderKLWan`. A stage is two residual blocks and a resampler, which the last stage lacks."""
    base = weights["encoder.conv1.weight"].shape[0]
    stages = range(0, 3 * 4, 3)
    return {
        "base_dim": base,
        "z_dim": weights["conv2.weight"].shape[0],
        "dim_mult": [weights[f"encoder.downsamples.{i}.residual.2.weight"].shape[0] // base for i in stages],
        "num_res_blocks": 2,
        "temperal_downsample": [f"encoder.downsamples.{i}.time_conv.weight" in weights for i in (2, 5, 8)],
    }


def vae_tensors(file: Path, weights: Mapping[str, Tensor]) -> Iterator[Loaded]:
    for name, tensor in weights.items():
        yield Loaded(file, name, convert_wan_vae_to_diffusers({name: tensor}))


def text_encoder_config(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Arguments of `UMT5Config`."""
    buckets, heads = weights["blocks.0.pos_embedding.embedding.weight"].shape
    width, dim = weights["blocks.0.attn.q.weight"].shape
    return {
        "vocab_size": weights["token_embedding.weight"].shape[0],
        "d_model": dim,
        "d_kv": width // heads,
        "d_ff": weights["blocks.0.ffn.fc1.weight"].shape[0],
        "num_layers": _count(weights, "blocks."),
        "num_heads": heads,
        "relative_attention_num_buckets": buckets,
        "feed_forward_proj": "gated-gelu",
        "dropout_rate": 0.0,
    }


_TEXT_NAMES = {
    "attn": "layer.0.SelfAttention",
    "pos_embedding.embedding": "layer.0.SelfAttention.relative_attention_bias",
    "norm1": "layer.0.layer_norm",
    "norm2": "layer.1.layer_norm",
    "ffn.gate.0": "layer.1.DenseReluDense.wi_0",
    "ffn.fc1": "layer.1.DenseReluDense.wi_1",
    "ffn.fc2": "layer.1.DenseReluDense.wo",
}


def text_encoder_tensors(file: Path, weights: Mapping[str, Tensor]) -> Iterator[Loaded]:
    for name, tensor in weights.items():
        yield Loaded(file, name, {_text_name(name): tensor})


def _text_name(name: str) -> str:
    if name == "token_embedding.weight":
        return "shared.weight"
    if name == "norm.weight":
        return "encoder.final_layer_norm.weight"
    head, _, rest = name.partition(".")
    block, _, inner = rest.partition(".")
    for old, new in _TEXT_NAMES.items():
        if head == "blocks" and inner.startswith(f"{old}."):
            return f"encoder.block.{block}.{new}{inner.removeprefix(old)}"
    return name


def image_encoder_config(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Arguments of `CLIPVisionConfig`."""
    dim, _, patch, _ = weights["visual.patch_embedding.weight"].shape
    positions = weights["visual.pos_embedding"].shape[1]
    return {
        "hidden_size": dim,
        "intermediate_size": weights["visual.transformer.0.mlp.0.weight"].shape[0],
        "num_hidden_layers": _count(weights, "visual.transformer."),
        "num_attention_heads": dim // CLIP_HEAD_DIM,
        "patch_size": patch,
        "image_size": round((positions - 1) ** 0.5) * patch,
        "hidden_act": "gelu",
    }


_CLIP_NAMES = {
    "patch_embedding.": "embeddings.patch_embedding.",
    "pre_norm.": "pre_layrnorm.",
    "post_norm.": "post_layernorm.",
    "transformer.": "encoder.layers.",
    ".norm1.": ".layer_norm1.",
    ".norm2.": ".layer_norm2.",
    ".attn.proj.": ".self_attn.out_proj.",
    ".mlp.0.": ".mlp.fc1.",
    ".mlp.2.": ".mlp.fc2.",
}


def image_encoder_tensors(file: Path, weights: Mapping[str, Tensor]) -> Iterator[Loaded]:
    """CLIP's vision tower. The model does not use the text tower, the projection head and the temperature."""
    for name, tensor in weights.items():
        if name.startswith("visual.") and name != "visual.head":
            yield Loaded(file, name, _convert_clip(name.removeprefix("visual."), tensor))


def _convert_clip(name: str, tensor: Tensor) -> dict[str, Tensor]:
    if name == "cls_embedding":
        return {"embeddings.class_embedding": tensor.flatten()}
    if name == "pos_embedding":
        return {"embeddings.position_embedding.weight": tensor[0]}
    for old, new in _CLIP_NAMES.items():
        if name.startswith(old) or (old.startswith(".") and old in name):
            name = name.replace(old, new, 1)
    if ".attn.to_qkv." in name:
        parts = zip(("q_proj", "k_proj", "v_proj"), tensor.chunk(3), strict=True)
        return {name.replace(".attn.to_qkv.", f".self_attn.{part}."): value for part, value in parts}
    return {name: tensor}


def _shards(snapshot: Path) -> list[Path]:
    index = json.loads((snapshot / f"{TRANSFORMER}.safetensors.index.json").read_text())
    return [snapshot / name for name in sorted(set(index["weight_map"].values()))]


def _count(weights: Mapping[str, Tensor], prefix: str) -> int:
    return len({name.removeprefix(prefix).split(".")[0] for name in weights if name.startswith(prefix)})
