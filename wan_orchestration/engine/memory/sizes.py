"""The sizes of a snapshot's models, found without reading their weights."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch

from wan_orchestration.engine.diffusers_internals import kept_in_float32
from wan_orchestration.engine.layouts import original
from wan_orchestration.engine.layouts.diffusers import diffusers_tensors
from wan_orchestration.engine.layouts.weight_files import read_pickle
from wan_orchestration.engine.transformer.model import WanTransformer
from wan_orchestration.engine.vae.model import AnimateVae
from wan_orchestration.families.choose import family_of
from wan_orchestration.weights.snapshot import Snapshot


@dataclass(frozen=True)
class Sizes:
    """Bytes of a snapshot's models in the dtypes they run in, and the widths that decide the size of activations."""

    transformer: int
    loaded: int
    """The transformer before quantization."""
    block: int
    """The largest module of the transformer's trunk, which are streamed one by one."""
    block_parameters: int
    """Number of parameters of the module that has the most."""
    outside: int
    """The transformer without its trunk."""
    text_encoder: int
    vae: int
    dim: int
    head_dim: int
    layers: int
    adapters: int
    """Modules of the trunk that are no blocks."""
    peak_maps: tuple[float, float]
    """As `WanTransformer.peak_maps`."""
    vae_width: int
    """Channels of the VAE's outermost layer."""
    itemsize: int
    """Bytes of a value in the transformer's dtype."""
    vae_itemsize: int

    @classmethod
    def of(
        cls,
        transformer: WanTransformer,
        *,
        text_encoder: int,
        vae: int,
        vae_width: int,
        itemsize: int,
        vae_itemsize: int,
        quantized: bool,
    ) -> "Sizes":
        """From a transformer, which may be on the meta device, and the bytes of the other models."""
        streamed, parameters = Counter[str](), Counter[str]()
        whole = loaded = 0
        for name, parameter in transformer.named_parameters():
            size = as_loaded = parameter.numel() * (4 if kept_in_float32(transformer, name) else itemsize)
            if name.partition(".")[0] in transformer.trunk_names:
                if quantized and parameter.ndim == 2 and name.endswith(".weight"):
                    size = parameter.numel() + 4 * parameter.shape[0]
                module = name.rsplit(".", name.count(".") - 1)[0]
                streamed[module] += size
                parameters[module] += parameter.numel()
            whole += size
            loaded += as_loaded
        config = transformer.config
        return cls(
            transformer=whole,
            loaded=loaded,
            block=max(streamed.values()),
            block_parameters=max(parameters.values()),
            outside=whole - streamed.total(),
            text_encoder=text_encoder,
            vae=vae,
            dim=config["num_attention_heads"] * config["attention_head_dim"],
            head_dim=config["attention_head_dim"],
            layers=config["num_layers"],
            adapters=len(transformer.trunk.order()) - config["num_layers"],
            peak_maps=transformer.peak_maps,
            vae_width=vae_width,
            itemsize=itemsize,
            vae_itemsize=vae_itemsize,
        )


def text_encoder_size(snapshot: Snapshot, dtype: torch.dtype) -> int:
    """Bytes of a snapshot's text encoder in `dtype`."""
    if snapshot.layout == "diffusers":
        files = (tensors for *_, tensors in diffusers_tensors(snapshot.file("text_encoder")))
    else:
        files = [read_pickle(snapshot.file("text_encoder"))]
    return dtype.itemsize * sum(value.numel() for tensors in files for value in tensors.values())


def sizes(
    snapshot: Snapshot, dtype: torch.dtype, quantized: bool = False, vae_dtype: torch.dtype = torch.float32
) -> Sizes:
    """Sizes of a snapshot's models if the transformer and the text encoder run in `dtype`."""
    if snapshot.layout == "diffusers":
        vae = sum(
            value.numel() for *_, tensors in diffusers_tensors(snapshot.file("vae")) for value in tensors.values()
        )
        config: Any = AnimateVae.load_config(snapshot.file("vae"))
        width = config["base_dim"]
    else:
        weights = read_pickle(snapshot.file("vae"))
        vae, width = sum(value.numel() for value in weights.values()), original.vae_config(weights)["base_dim"]
    return Sizes.of(
        family_of(snapshot.family).part("checkpoint").empty(snapshot),
        text_encoder=text_encoder_size(snapshot, dtype),
        vae=vae * vae_dtype.itemsize,
        vae_width=width,
        itemsize=dtype.itemsize,
        vae_itemsize=vae_dtype.itemsize,
        quantized=quantized,
    )
