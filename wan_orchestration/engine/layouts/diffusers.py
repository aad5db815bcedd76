"""The Diffusers snapshot layout: configurations and tensors for the model classes."""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, TypeVar

from accelerate import init_empty_weights

from wan_orchestration.engine.layouts import original
from wan_orchestration.engine.layouts.fill import Loaded
from wan_orchestration.engine.layouts.weight_files import read_safetensors
from wan_orchestration.engine.transformer.model import AnimateTransformer
from wan_orchestration.engine.vae.model import AnimateVae
from wan_orchestration.weights.snapshot import Snapshot

D = TypeVar("D", AnimateTransformer, AnimateVae)


def empty_transformer(snapshot: Snapshot) -> AnimateTransformer:
    """The transformer of a snapshot in either layout, without its weights."""
    with init_empty_weights():
        if snapshot.layout == "diffusers":
            return configured(AnimateTransformer, snapshot.path / "transformer")
        return AnimateTransformer(**original.transformer_config(snapshot.path))


def transformer_tensors(snapshot: Snapshot, only: Collection[str] | None = None) -> Iterator[Loaded]:
    """The transformer's tensors in a snapshot of either layout: all of them, or `only` those of these weights."""
    if snapshot.layout == "diffusers":
        return diffusers_tensors(snapshot.path / "transformer", only)
    return original.transformer_tensors(snapshot.path, only)


def configured(cls: type[D], folder: Path) -> D:
    """A model built from the `config.json` in its folder."""
    config: Any = cls.load_config(folder)
    model: Any = cls.from_config(config)
    return model


def diffusers_tensors(folder: Path, only: Collection[str] | None = None) -> Iterator[Loaded]:
    """The tensors in a model's folder, file by file: all of them, or `only` those of these names."""
    for file in sorted(folder.glob("*.safetensors")):
        for name, value in read_safetensors(file, lambda name, shape: only is None or name in only):
            yield Loaded(file, name, {name: value})
