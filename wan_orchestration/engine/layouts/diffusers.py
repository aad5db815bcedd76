"""The Diffusers snapshot layout: configurations and tensors for the model classes."""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from wan_orchestration.engine.layouts.fill import Loaded, converted_tensors

M = TypeVar("M", bound=nn.Module)


def configured(cls: type[M], folder: Path) -> M:
    """A model built from the `config.json` in its folder."""
    with_config: Any = cls  # its methods come from diffusers' ConfigMixin
    return with_config.from_config(with_config.load_config(folder))


def diffusers_tensors(folder: Path, only: Collection[str] | None = None) -> Iterator[Loaded]:
    """The tensors in a model's folder, file by file: all of them, or `only` those of these names."""
    return converted_tensors(sorted(folder.glob("*.safetensors")), lambda name, tensor: {name: tensor}, only)
