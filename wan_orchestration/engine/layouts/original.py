"""The original (ModelScope) snapshot layout: configurations and tensors for the diffusers and transformers classes.

Widths are read from tensor shapes, so one loader opens the 14B snapshot and smaller ones. The VAE's key map is that
of diffusers' single-file loader.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers
from torch import Tensor

from wan_orchestration.engine.layouts.fill import Loaded

CLIP_HEAD_DIM = 80  # ViT-H/14: 1280 / 16. The fused projection does not show the number of heads.


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


def _count(weights: Mapping[str, Tensor], prefix: str) -> int:
    return len({name.removeprefix(prefix).split(".")[0] for name in weights if name.startswith(prefix)})
