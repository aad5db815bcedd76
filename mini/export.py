"""Writes the trained weights as a snapshot in the original layout, in float16."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers
from safetensors.torch import save_file
from torch import Tensor

from wan_orchestration.engine.layouts.weight_files import read_pickle, read_safetensors
from wan_orchestration.families.animate.family import VAE
from wan_orchestration.families.animate.transformer import AnimateTransformer
from wan_orchestration.families.family import TRANSFORMER
from wan_orchestration.files import replacing


def write_snapshot(folder: Path, base: Path, transformer: Mapping[str, Tensor], vae: Mapping[str, Tensor]) -> None:
    """Write a copy of the base with new weights of its transformer and VAE, given by the names of diffusers' classes.

    The base has the original names; the loader's key map gives their diffusers names.
    """
    with replacing(folder) as part:
        shutil.copytree(base, part)
        for shard in sorted(part.glob(f"{TRANSFORMER}*.safetensors")):
            kept = {}
            for name, tensor in read_safetensors(shard):
                blur = name.endswith(".kernel")
                converted = {} if blur else AnimateTransformer.converted(name, tensor)
                kept[name] = tensor.clone() if blur else _joined(converted, transformer, tensor)
            save_file(kept, shard, metadata={"format": "pt"})
        kept = {
            name: _joined(convert_wan_vae_to_diffusers({name: tensor}), vae, tensor)
            for name, tensor in read_pickle(base / VAE).items()
        }
        torch.save(kept, part / VAE)


def _joined(names: Mapping[str, Tensor], weights: Mapping[str, Tensor], shaped: Tensor) -> Tensor:
    """The weights that one tensor of the original layout holds, in its shape. A fused key/value holds two weights."""
    return torch.cat([weights[name].detach().cpu() for name in names]).reshape(shaped.shape).half()
