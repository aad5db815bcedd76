"""Writes a Wan-Animate-2 snapshot of the original layout in the Diffusers layout, as published for one variant.

`python benchmarks/animate_2_layout.py SNAPSHOT FOLDER distilled|base`
"""

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKLWan, DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.loaders.single_file_utils import convert_wan_animate_2_transformer_to_diffusers
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AutoTokenizer,
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    UMT5Config,
    UMT5EncoderModel,
)

from wan_orchestration.engine.layouts import original
from wan_orchestration.engine.layouts.fill import Loaded, fill
from wan_orchestration.families.animate_2.family import ANIMATE_2, CHECKPOINTS

BLOCKS = {"base": "WanAnimate2Blocks", "distilled": "WanAnimate2DistilledBlocks"}

COMPONENTS = {
    "transformer": ("diffusers", "WanAnimate2Transformer3DModel"),
    "vae": ("diffusers", "AutoencoderKLWan"),
    "text_encoder": ("transformers", "UMT5EncoderModel"),
    "tokenizer": ("transformers", "AutoTokenizer"),
    "image_encoder": ("transformers", "CLIPVisionModel"),
}


def write(source: Path, target: Path, variant: str) -> Path:
    """Write the snapshot in `source` to `target`, with the transformer of one variant in a few shards."""
    files = ANIMATE_2.layouts["original"]
    target.mkdir(parents=True, exist_ok=True)
    _write_transformer(source, target / "transformer", variant)
    vae = torch.load(source / files.vae, weights_only=True)["model_state"]
    _converted(
        vae, original.vae_config, lambda config: AutoencoderKLWan(**config), original.vae_tensors
    ).save_pretrained(target / "vae")
    _converted(
        torch.load(source / files.text_encoder, weights_only=True),
        original.text_encoder_config,
        lambda config: UMT5EncoderModel(UMT5Config(**config)),
        original.text_encoder_tensors,
    ).save_pretrained(target / "text_encoder")
    _converted(
        torch.load(source / files.image_encoder, weights_only=True),
        original.image_encoder_config,
        lambda config: CLIPVisionModel(CLIPVisionConfig(**config)),
        original.image_encoder_tensors,
    ).save_pretrained(target / "image_encoder")
    AutoTokenizer.from_pretrained(source / files.tokenizer, local_files_only=True).save_pretrained(target / "tokenizer")
    CLIPImageProcessor().save_pretrained(target / "image_processor")
    solver = scheduler(variant)
    solver.save_pretrained(target / "scheduler")
    _write_indices(target, variant, COMPONENTS | {"scheduler": ("diffusers", type(solver).__name__)})
    return target


def scheduler(variant: str) -> Any:
    """The solver in the published repository of this variant."""
    if variant == "base":
        return DPMSolverMultistepScheduler(use_flow_sigmas=True, flow_shift=5.0, prediction_type="flow_prediction")
    return FlowMatchEulerDiscreteScheduler(shift=5.0)


def transformer_config(source: Path, weights: dict[str, Tensor]) -> dict[str, Any]:
    """Arguments of `WanAnimate2Transformer3DModel`. The tests' snapshot has a config.json; the published one has none.

    `weights` are under their names in the Diffusers layout.
    """
    dim = weights["patch_embedding.weight"].shape[0]
    config = {
        "patch_size": [1, 2, 2],
        "text_len": 512,
        "in_dim": weights["patch_embedding.weight"].shape[1],
        "dim": dim,
        "ffn_dim": weights["blocks.0.ffn.0.weight"].shape[0],
        "freq_dim": weights["time_embedding.0.weight"].shape[1],
        "text_dim": weights["text_embedding.0.weight"].shape[1],
        "out_dim": weights["head.head.weight"].shape[0] // 4,
        "num_heads": dim // 128,
        "num_layers": len({name.split(".")[1] for name in weights if name.startswith("blocks.")}),
        "cross_attn_norm": True,
        "eps": 1e-6,
        "use_img_emb": True,
        "refer_offset_t": 1,
        "refer_offset_h": 0,
        "refer_offset_w": -1,
        "refer_stride": 1,
    }
    given = (source / CHECKPOINTS["base"]).with_name("config.json")
    if given.exists():
        config |= {name: value for name, value in json.loads(given.read_text()).items() if name in config}
    return config


def _write_transformer(source: Path, target: Path, variant: str) -> None:
    target.mkdir(exist_ok=True)
    weights = convert_wan_animate_2_transformer_to_diffusers(load_file(source / CHECKPOINTS[variant]))
    name = "diffusion_pytorch_model{suffix}.safetensors"
    size = sum(tensor.nbytes for tensor in weights.values()) // 3
    save_torch_state_dict(weights, target, filename_pattern=name, max_shard_size=size)
    config = {"_class_name": COMPONENTS["transformer"][1], **transformer_config(source, weights)}
    (target / "config.json").write_text(json.dumps(config, indent=2))


def _converted(
    weights: dict[str, Tensor],
    configure: Callable[[dict[str, Tensor]], dict[str, Any]],
    build: Callable[[dict[str, Any]], Any],
    tensors: Callable[[Path, dict[str, Tensor]], Iterable[Loaded]],
) -> Any:
    """A model of diffusers or transformers with the weights of an original file, in their dtype."""
    with init_empty_weights():
        model = build(configure(weights))
    dtype = next(value.dtype for value in weights.values() if value.ndim > 1)
    return fill(model, tensors(Path(), weights), dtype, torch.device("cpu"))


def _write_indices(target: Path, variant: str, components: dict[str, tuple[str, str]]) -> None:
    plain = {"_class_name": "WanAnimate2Pipeline", **{name: list(kind) for name, kind in components.items()}}
    (target / "model_index.json").write_text(json.dumps(plain, indent=2))
    pipeline = BLOCKS[variant].replace("Blocks", "ModularPipeline")
    modular: dict[str, Any] = {"_class_name": pipeline, "_blocks_class_name": BLOCKS[variant]}
    for name, (library, kind) in components.items():
        place = {"pretrained_model_name_or_path": str(target.absolute()), "subfolder": name}
        modular[name] = [library, kind, {**place, "revision": None, "variant": None, "type_hint": [library, kind]}]
    (target / "modular_model_index.json").write_text(json.dumps(modular, indent=2))


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
