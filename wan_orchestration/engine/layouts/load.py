"""Loads the models of a snapshot in either layout, each on a device and in a dtype.

With a mesh, a model is sharded over its ranks before its weights are filled in.
"""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from transformers import CLIPVisionConfig, CLIPVisionModel, UMT5Config, UMT5EncoderModel

from wan_orchestration.engine.layouts import original
from wan_orchestration.engine.layouts.diffusers import configured, diffusers_tensors
from wan_orchestration.engine.layouts.fill import Loaded, fill, refuse
from wan_orchestration.engine.layouts.weight_files import read_pickle
from wan_orchestration.engine.memory.capacity import ran_out_of_memory
from wan_orchestration.engine.transformer.model import WanTransformer
from wan_orchestration.engine.transformer.sharding import shard_text_encoder, shard_transformer
from wan_orchestration.engine.vae.model import AnimateVae
from wan_orchestration.errors import BadInput
from wan_orchestration.families.choose import family_of
from wan_orchestration.weights.snapshot import Snapshot

M = TypeVar("M", bound=nn.Module)
P = TypeVar("P", UMT5EncoderModel, CLIPVisionModel)


def load_transformer(
    snapshot: Snapshot, dtype: torch.dtype, device: torch.device, mesh: DeviceMesh | None
) -> WanTransformer:
    checkpoint = family_of(snapshot.family).part("checkpoint")
    model = checkpoint.empty(snapshot)
    if mesh:
        shard_transformer(model, mesh)
    return fill(model, checkpoint.tensors(snapshot), dtype, device)


def load_vae(snapshot: Snapshot, dtype: torch.dtype, device: torch.device) -> AnimateVae:
    if snapshot.layout == "diffusers":
        folder = snapshot.file("vae")
        with init_empty_weights():
            model = configured(AnimateVae, folder)
        return fill(model, diffusers_tensors(folder), dtype, device)
    return _from_pickle(
        snapshot.file("vae"),
        original.vae_config,
        lambda config: AnimateVae(**config),
        original.vae_tensors,
        dtype,
        device,
    )


def load_text_encoder(
    snapshot: Snapshot, dtype: torch.dtype, device: torch.device, mesh: DeviceMesh | None
) -> UMT5EncoderModel:
    if snapshot.layout == "diffusers":
        # With shards, load it on the CPU first. The device then gets only this rank's part of each layer.
        first = torch.device("cpu") if mesh else device
        model = _from_transformers(UMT5EncoderModel, snapshot.file("text_encoder"), dtype, first)
        if mesh:
            shard_text_encoder(model, mesh)
            nn.Module.to(model, device)
        return model
    return _from_pickle(
        snapshot.file("text_encoder"),
        original.text_encoder_config,
        lambda config: UMT5EncoderModel(UMT5Config(**config)),
        original.text_encoder_tensors,
        dtype,
        device,
        mesh and partial(shard_text_encoder, mesh=mesh),
    )


def load_image_encoder(snapshot: Snapshot, device: torch.device) -> CLIPVisionModel:
    """In float32."""
    if snapshot.layout == "diffusers":
        return _from_transformers(CLIPVisionModel, snapshot.file("image_encoder"), torch.float32, device)
    return _from_pickle(
        snapshot.file("image_encoder"),
        original.image_encoder_config,
        lambda config: CLIPVisionModel(CLIPVisionConfig(**config)),
        original.image_encoder_tensors,
        torch.float32,
        device,
    )


def _from_pickle(
    file: Path,
    configure: Callable[[dict[str, Tensor]], dict[str, Any]],
    build: Callable[[dict[str, Any]], M],
    tensors: Callable[[Path, dict[str, Tensor]], Iterable[Loaded]],
    dtype: torch.dtype,
    device: torch.device,
    shard: Callable[[M], None] | None = None,
) -> M:
    weights = read_pickle(file)
    try:
        config = configure(weights)
    except KeyError as missing:
        raise BadInput(f"{file}: tensor {missing.args[0]!r} is missing") from None
    with init_empty_weights():
        model = build(config)
    if shard:
        shard(model)
    return fill(model, tensors(file, weights), dtype, device)


def _from_transformers(cls: type[P], folder: Path, dtype: torch.dtype, device: torch.device) -> P:
    try:
        # With output_loading_info, from_pretrained returns a pair. Its signature does not say so.
        pair: Any = cls.from_pretrained(
            folder, dtype=dtype, local_files_only=True, output_loading_info=True, device_map=str(device)
        )
        loaded, report = pair
    except (OSError, ValueError, RuntimeError) as error:
        if ran_out_of_memory(error):
            raise
        raise BadInput(f"{folder}: cannot be loaded: {str(error).strip().splitlines()[0]}") from None
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report.get(kind):
            refuse(folder, kind.removesuffix("_keys"), sorted(map(str, report[kind])))
    return loaded.eval().requires_grad_(False)
