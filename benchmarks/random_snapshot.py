"""Writes a small snapshot with seeded random weights in the original layout, for a first run and for tests.

    python benchmarks/random_snapshot.py FOLDER [--model animate-2] [--variants distilled base] [--dim 256 ...]

Its videos are noise; everything else works as with the 14B weights.
"""

import argparse
import json
import math
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor

from wan_orchestration.families.animate.family import IMAGE_ENCODER, RELIGHTING_LORA, TEXT_ENCODER, TOKENIZER, VAE
from wan_orchestration.families.animate_2.family import ANIMATE_2, CHECKPOINTS
from wan_orchestration.families.family import TRANSFORMER
from wan_orchestration.files import replacing
from wan_orchestration.settings.generate import NEGATIVE_PROMPT, PROMPT

Shapes = Iterator[tuple[str, tuple[int, ...]]]


@dataclass(frozen=True)
class Widths:
    """Sizes of the models. The 14B snapshot's dim is 5120, its heads 40, its layers 40, its ffn 13824, its vae 96."""

    dim: int = 128
    heads: int = 4
    layers: int = 10
    ffn: int = 256
    freq: int = 64
    text: int = 64
    motion: int = 64
    face_hidden: int = 64
    face_heads: int = 4
    motion_channels: tuple[int, ...] = (2, 4, 8, 12, 16, 24, 24, 24)
    motion_dim: int = 20
    vae: int = 4
    text_layers: int = 2
    text_heads: int = 4
    clip: int = 160
    clip_layers: int = 3
    clip_patch: int = 14
    clip_side: int = 16
    lora_rank: int = 8


ANIMATE_2_WIDTHS = replace(Widths(), dim=256, heads=2, layers=11)
"""One block more than the tenth, which the branch without guidance skips."""

LATENT_CHANNELS = 16


def write(folder: Path, widths: Widths | None = None, seed: int = 0, shards: int = 2) -> None:
    """Write a snapshot to `folder`, which appears once it is complete. The same seed gives the same weights."""
    widths = widths or Widths()
    generator = torch.Generator().manual_seed(seed)
    with replacing(folder) as part:
        (part / TOKENIZER).mkdir(parents=True)
        vocabulary = _write_tokenizer(part / TOKENIZER)
        _write_transformer(part, widths, generator, shards)
        torch.save(_draw(vae_shapes(widths), generator, torch.float32), part / VAE)
        torch.save(_draw(text_shapes(widths, vocabulary), generator, torch.bfloat16), part / TEXT_ENCODER)
        torch.save(_draw(clip_shapes(widths), generator, torch.float32), part / IMAGE_ENCODER)
        lora = _draw(lora_shapes(widths), generator, torch.bfloat16)
        torch.save({"state_dict": lora}, part / RELIGHTING_LORA)


def write_animate_2(
    folder: Path, widths: Widths | None = None, seed: int = 0, variants: tuple[str, ...] = ("distilled",)
) -> None:
    """Write a Wan-Animate-2 snapshot to `folder`, with a transformer for each of these variants.

    As in the published one, nothing says how many heads there are if each has 128 channels; else a config.json does.
    """
    w, files = widths or ANIMATE_2_WIDTHS, ANIMATE_2.layouts["original"]
    generator = torch.Generator().manual_seed(seed)
    with replacing(folder) as part:
        (part / files.tokenizer).mkdir(parents=True)
        vocabulary = _write_tokenizer(part / files.tokenizer)
        for variant in variants:
            file = part / CHECKPOINTS[variant]
            file.parent.mkdir(exist_ok=True)
            save_file(_draw(animate_2_shapes(w), generator, torch.bfloat16), file, metadata={"format": "pt"})
            if w.heads * 128 != w.dim:
                file.with_name("config.json").write_text(json.dumps(_animate_2_config(w), indent=1))
        torch.save({"model_state": _draw(vae_shapes(w), generator, torch.float32)}, part / files.vae)
        torch.save(_draw(text_shapes(w, vocabulary), generator, torch.bfloat16), part / files.text_encoder)
        torch.save(_draw(clip_shapes(w), generator, torch.float16), part / files.image_encoder)


def _animate_2_config(w: Widths) -> dict[str, Any]:
    sizes = {"dim": w.dim, "ffn_dim": w.ffn, "freq_dim": w.freq, "text_dim": w.text, "out_dim": LATENT_CHANNELS}
    offsets = {"refer_offset_t": 1, "refer_offset_h": 0, "refer_offset_w": -1, "refer_stride": 1}
    others = {"patch_size": [1, 2, 2], "text_len": 512, "cross_attn_norm": True, "eps": 1e-6, "use_img_emb": True}
    heads = {"in_dim": 2 * LATENT_CHANNELS + 4, "num_heads": w.heads, "num_layers": w.layers}
    return sizes | heads | others | offsets


def _write_transformer(folder: Path, w: Widths, generator: torch.Generator, shards: int) -> None:
    config = {
        "_class_name": "WanAnimateModel",
        "cross_attn_norm": True,
        "dim": w.dim,
        "eps": 1e-6,
        "ffn_dim": w.ffn,
        "freq_dim": w.freq,
        "in_dim": 2 * LATENT_CHANNELS + 4,
        "motion_encoder_dim": w.motion,
        "num_heads": w.heads,
        "num_layers": w.layers,
        "out_dim": LATENT_CHANNELS,
        "patch_size": [1, 2, 2],
        "qk_norm": True,
        "text_dim": w.text,
        "text_len": 512,
        "use_context_parallel": False,
        "use_img_emb": True,
        "window_size": [-1, -1],
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    weights = _draw(transformer_shapes(w), generator, torch.bfloat16)
    names = list(weights)
    size = math.ceil(len(names) / shards)
    weight_map = {}
    for shard in range(shards):
        file = f"{TRANSFORMER}-{shard + 1:05d}-of-{shards:05d}.safetensors"
        part = names[shard * size : (shard + 1) * size]
        save_file({name: weights[name] for name in part}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    total = sum(tensor.nbytes for tensor in weights.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / f"{TRANSFORMER}.safetensors.index.json").write_text(json.dumps(index, indent=1))


def _write_tokenizer(folder: Path) -> int:
    """A tokenizer that knows ASCII and the characters of the default prompts; returns its vocabulary's size."""
    characters = sorted({chr(code) for code in range(33, 127)} | set(PROMPT + NEGATIVE_PROMPT) | {"▁"})
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((character, -5.0) for character in characters)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "<pad>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return len(pieces)


def transformer_shapes(w: Widths) -> Shapes:
    """Names and shapes of the original transformer."""
    for index in range(w.layers):
        block = f"blocks.{index}"
        for attention in ("self_attn", "cross_attn"):
            for part in ("q", "k", "v", "o", *(("k_img", "v_img") if attention == "cross_attn" else ())):
                yield from _linear(f"{block}.{attention}.{part}", w.dim, w.dim)
            norms = ("norm_q", "norm_k", "norm_k_img") if attention == "cross_attn" else ("norm_q", "norm_k")
            yield from ((f"{block}.{attention}.{norm}.weight", (w.dim,)) for norm in norms)
        yield from _linear(f"{block}.ffn.0", w.ffn, w.dim)
        yield from _linear(f"{block}.ffn.2", w.dim, w.ffn)
        yield f"{block}.modulation", (1, 6, w.dim)
        yield from _norm(f"{block}.norm3", w.dim)
    yield from _bias("patch_embedding", (w.dim, 2 * LATENT_CHANNELS + 4, 1, 2, 2))
    yield from _bias("pose_patch_embedding", (w.dim, LATENT_CHANNELS, 1, 2, 2))
    yield from _linear("text_embedding.0", w.dim, w.text)
    yield from _linear("text_embedding.2", w.dim, w.dim)
    yield from _linear("time_embedding.0", w.dim, w.freq)
    yield from _linear("time_embedding.2", w.dim, w.dim)
    yield from _linear("time_projection.1", 6 * w.dim, w.dim)
    yield from _norm("img_emb.proj.0", w.clip)
    yield from _linear("img_emb.proj.1", w.clip, w.clip)
    yield from _linear("img_emb.proj.3", w.dim, w.clip)
    yield from _norm("img_emb.proj.4", w.dim)
    yield from _linear("head.head", 4 * LATENT_CHANNELS, w.dim)
    yield "head.modulation", (1, 2, w.dim)
    for index in range(w.layers // 5):
        adapter = f"face_adapter.fuser_blocks.{index}"
        yield from _linear(f"{adapter}.linear1_kv", 2 * w.dim, w.dim)
        yield from _linear(f"{adapter}.linear1_q", w.dim, w.dim)
        yield from _linear(f"{adapter}.linear2", w.dim, w.dim)
        yield f"{adapter}.q_norm.weight", (w.dim // w.heads,)
        yield f"{adapter}.k_norm.weight", (w.dim // w.heads,)
    yield from _bias("face_encoder.conv1_local.conv", (w.face_hidden * w.face_heads, w.motion, 3))
    yield from _bias("face_encoder.conv2.conv", (w.face_hidden, w.face_hidden, 3))
    yield from _bias("face_encoder.conv3.conv", (w.face_hidden, w.face_hidden, 3))
    yield from _linear("face_encoder.out_proj", w.dim, w.face_hidden)
    yield "face_encoder.padding_tokens", (1, 1, 1, w.dim)
    yield from _motion_encoder_shapes(w)


def animate_2_shapes(w: Widths) -> Shapes:
    """Names and shapes of the original transformer of Wan-Animate-2."""
    for name, shape in transformer_shapes(w):
        if not name.startswith(("pose_patch_embedding", "face_", "motion_encoder")):
            yield re.sub(r"^(blocks\.\d+)\.", r"\1.block.", name), shape


def _motion_encoder_shapes(w: Widths) -> Shapes:
    channels, convs = w.motion_channels, "motion_encoder.enc.net_app.convs"
    yield f"{convs}.0.0.weight", (channels[0], 3, 1, 1)
    yield f"{convs}.0.1.bias", (1, channels[0], 1, 1)
    for index in range(1, len(channels)):
        before, after = channels[index - 1], channels[index]
        yield f"{convs}.{index}.conv1.0.weight", (before, before, 3, 3)
        yield f"{convs}.{index}.conv1.1.bias", (1, before, 1, 1)
        yield f"{convs}.{index}.conv2.0.kernel", (4, 4)
        yield f"{convs}.{index}.conv2.1.weight", (after, before, 3, 3)
        yield f"{convs}.{index}.conv2.2.bias", (1, after, 1, 1)
        yield f"{convs}.{index}.skip.0.kernel", (4, 4)
        yield f"{convs}.{index}.skip.1.weight", (after, before, 1, 1)
    yield f"{convs}.{len(channels)}.weight", (w.motion, channels[-1], 4, 4)
    for index in range(4):
        yield from _linear(f"motion_encoder.enc.fc.{index}", w.motion, w.motion)
    yield from _linear("motion_encoder.enc.fc.4", w.motion_dim, w.motion)
    yield "motion_encoder.dec.direction.weight", (w.motion, w.motion_dim)


def vae_shapes(w: Widths) -> Shapes:
    """Names and shapes of the original VAE, which halves the picture three times and the frames twice."""
    stages = [w.vae, 2 * w.vae, 4 * w.vae, 4 * w.vae]
    top = stages[-1]
    yield from _bias("encoder.conv1", (w.vae, 3, 3, 3, 3))
    before, index = w.vae, 0
    for stage, width in enumerate(stages):
        for _ in range(2):
            yield from _residual(f"encoder.downsamples.{index}", before, width)
            before, index = width, index + 1
        if stage < 3:
            yield from _bias(f"encoder.downsamples.{index}.resample.1", (width, width, 3, 3))
            if stage > 0:
                yield from _bias(f"encoder.downsamples.{index}.time_conv", (width, width, 3, 1, 1))
            index += 1
    yield from _middle("encoder", top)
    yield "encoder.head.0.gamma", (top, 1, 1, 1)
    yield from _bias("encoder.head.2", (2 * LATENT_CHANNELS, top, 3, 3, 3))
    yield from _bias("conv1", (2 * LATENT_CHANNELS, 2 * LATENT_CHANNELS, 1, 1, 1))
    yield from _bias("conv2", (LATENT_CHANNELS, LATENT_CHANNELS, 1, 1, 1))
    yield from _bias("decoder.conv1", (top, LATENT_CHANNELS, 3, 3, 3))
    yield from _middle("decoder", top)
    before, index = top, 0
    for stage, width in enumerate(reversed(stages)):
        for _ in range(3):
            yield from _residual(f"decoder.upsamples.{index}", before, width)
            before, index = width, index + 1
        if stage < 3:
            yield from _bias(f"decoder.upsamples.{index}.resample.1", (width // 2, width, 3, 3))
            if stage < 2:
                yield from _bias(f"decoder.upsamples.{index}.time_conv", (2 * width, width, 3, 1, 1))
            before, index = width // 2, index + 1
    yield "decoder.head.0.gamma", (w.vae, 1, 1, 1)
    yield from _bias("decoder.head.2", (3, w.vae, 3, 3, 3))


def _residual(name: str, before: int, after: int) -> Shapes:
    yield f"{name}.residual.0.gamma", (before, 1, 1, 1)
    yield from _bias(f"{name}.residual.2", (after, before, 3, 3, 3))
    yield f"{name}.residual.3.gamma", (after, 1, 1, 1)
    yield from _bias(f"{name}.residual.6", (after, after, 3, 3, 3))
    if before != after:
        yield from _bias(f"{name}.shortcut", (after, before, 1, 1, 1))


def _middle(part: str, width: int) -> Shapes:
    yield from _residual(f"{part}.middle.0", width, width)
    yield f"{part}.middle.1.norm.gamma", (width, 1, 1)
    yield from _bias(f"{part}.middle.1.to_qkv", (3 * width, width, 1, 1))
    yield from _bias(f"{part}.middle.1.proj", (width, width, 1, 1))
    yield from _residual(f"{part}.middle.2", width, width)


def text_shapes(w: Widths, vocabulary: int) -> Shapes:
    """Names and shapes of the original umT5 encoder."""
    yield "token_embedding.weight", (vocabulary, w.text)
    for index in range(w.text_layers):
        block = f"blocks.{index}"
        yield f"{block}.norm1.weight", (w.text,)
        yield from ((f"{block}.attn.{part}.weight", (w.text, w.text)) for part in "qkvo")
        yield f"{block}.norm2.weight", (w.text,)
        yield f"{block}.ffn.gate.0.weight", (2 * w.text, w.text)
        yield f"{block}.ffn.fc1.weight", (2 * w.text, w.text)
        yield f"{block}.ffn.fc2.weight", (w.text, 2 * w.text)
        yield f"{block}.pos_embedding.embedding.weight", (32, w.text_heads)
    yield "norm.weight", (w.text,)


def clip_shapes(w: Widths) -> Shapes:
    """Names and shapes of the original CLIP file; of the text tower only the temperature."""
    yield "log_scale", ()
    yield "visual.cls_embedding", (1, 1, w.clip)
    yield "visual.pos_embedding", (1, w.clip_side**2 + 1, w.clip)
    yield "visual.head", (w.clip, w.text)
    yield "visual.patch_embedding.weight", (w.clip, 3, w.clip_patch, w.clip_patch)
    yield from _norm("visual.pre_norm", w.clip)
    for index in range(w.clip_layers):
        layer = f"visual.transformer.{index}"
        yield from _norm(f"{layer}.norm1", w.clip)
        yield from _linear(f"{layer}.attn.to_qkv", 3 * w.clip, w.clip)
        yield from _linear(f"{layer}.attn.proj", w.clip, w.clip)
        yield from _norm(f"{layer}.norm2", w.clip)
        yield from _linear(f"{layer}.mlp.0", 4 * w.clip, w.clip)
        yield from _linear(f"{layer}.mlp.2", w.clip, 4 * w.clip)
    yield from _norm("visual.post_norm", w.clip)


def lora_shapes(w: Widths) -> Shapes:
    """A LoRA for every linear layer of the blocks."""
    for name, shape in transformer_shapes(w):
        if name.startswith("blocks.") and name.endswith(".weight") and len(shape) == 2:
            module = name.removesuffix(".weight")
            yield f"{module}.lora_A.weight", (w.lora_rank, shape[1])
            yield f"{module}.lora_B.weight", (shape[0], w.lora_rank)


def _linear(name: str, out: int, into: int) -> Shapes:
    yield from _bias(name, (out, into))


def _bias(name: str, shape: tuple[int, ...]) -> Shapes:
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]


def _norm(name: str, width: int) -> Shapes:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)


def _draw(shapes: Shapes, generator: torch.Generator, dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: _weight(name, shape, generator).to(dtype) for name, shape in shapes}


def _weight(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Values that keep activations near unit size: scaled by fan-in, norms at one, biases small."""
    if name.endswith(".kernel"):
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
        return torch.outer(taps, taps) / 64
    if ("norm" in name and name.endswith("weight")) or name.endswith(".gamma"):
        return torch.ones(shape)
    noise = torch.randn(shape, generator=generator)
    if name.startswith("motion_encoder.") and name.endswith(".weight"):
        return noise  # the class scales these by fan-in itself
    if name.endswith((".bias", "modulation", "embedding", "log_scale", "padding_tokens")) or len(shape) < 2:
        return 0.02 * noise
    return noise / math.sqrt(math.prod(shape[1:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the snapshot is written")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", choices=["animate", "animate-2"], default="animate")
    parser.add_argument("--variants", nargs="+", choices=ANIMATE_2.variants, default=["distilled"], help="of animate-2")
    for name, value in asdict(Widths()).items():
        if isinstance(value, int):
            parser.add_argument(f"--{name.replace('_', '-')}", type=int)
    arguments = vars(parser.parse_args())
    folder, seed, variants = arguments.pop("folder"), arguments.pop("seed"), tuple(arguments.pop("variants"))
    model = arguments.pop("model")
    given = {name: value for name, value in arguments.items() if value is not None}
    if model == "animate-2":
        write_animate_2(folder, replace(ANIMATE_2_WIDTHS, **given), seed, variants)
    else:
        write(folder, Widths(**given), seed)


if __name__ == "__main__":
    main()
