"""Reads weight files: safetensors and PyTorch pickles."""

import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from wan_orchestration.engine.memory.capacity import ran_out_of_memory
from wan_orchestration.errors import BadInput
from wan_orchestration.formats import describe


def read_safetensors(
    file: Path, wanted: Callable[[str, tuple[int, ...]], bool] | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Names and memory-mapped tensors of a file, one at a time. `wanted` chooses by name and shape; None: all."""
    with safe_open(file, framework="pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118 (not a mapping)
            if wanted is None or wanted(name, tuple(tensors.get_slice(name).get_shape())):
                yield name, tensors.get_tensor(name)


def safetensors_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of a file's tensors by name.

    Raises:
        BadInput: the file cannot be read.
    """
    try:
        with safe_open(file, framework="pt") as tensors:
            return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    except Exception as error:
        raise BadInput(
            f"{file} is {describe(file)}, which cannot be read as safetensors: {_first_line(error)}"
        ) from None


def read_pickle(file: Path) -> dict[str, Tensor]:
    """Tensors of a `.pth` or `.ckpt` file, memory-mapped if possible. Only plain tensors are unpickled.

    The file may keep them in an entry `state_dict` or `model_state`, with other things beside it.

    Raises:
        BadInput: the file is missing, cut short, or holds anything but tensors.
    """
    try:
        # Files of PyTorch before 1.6 are not zip archives and cannot be mapped.
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except Exception as error:
        if ran_out_of_memory(error):
            raise
        raise BadInput(
            f"{file} is {describe(file)}, which cannot be read as a PyTorch weight file: {_first_line(error)}"
        ) from None
    for wrapper in ("state_dict", "model_state"):
        content = content.get(wrapper, content) if isinstance(content, dict) else content
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise BadInput(f"{file}: expected a dictionary of tensors, found {type(content).__name__}")
    return content


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
