"""Fills an empty model with a snapshot's tensors, strictly: tensors and parameters must match one to one."""

from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import UMT5EncoderModel

from wan_orchestration.engine.diffusers_internals import kept_in_float32
from wan_orchestration.engine.layouts.weight_files import read_safetensors
from wan_orchestration.engine.transformer.sharding import own_rows
from wan_orchestration.errors import BadInput

M = TypeVar("M", bound=nn.Module)


class Loaded(NamedTuple):
    """One tensor of a file: its name there, and its names and values in the model class."""

    file: Path
    name: str
    converted: dict[str, Tensor]


def converted_tensors(
    files: Iterable[Path],
    convert: Callable[[str, Tensor], dict[str, Tensor]],
    only: Collection[str] | None = None,
    leave_out: str | None = None,
) -> Iterator[Loaded]:
    """The tensors of safetensors files, under the names that `convert` gives them, one at a time.

    `only` limits them to those that hold weights of these names; no others are read. Tensors whose name in the file
    ends with `leave_out` are left out.
    """

    def wanted(name: str, shape: tuple[int, ...]) -> bool:
        if leave_out and name.endswith(leave_out):
            return False
        return only is None or any(key in only for key in convert(name, torch.empty(shape, device="meta")))

    for file in files:
        for name, tensor in read_safetensors(file, wanted):
            yield Loaded(file, name, convert(name, tensor))


def fill(model: M, tensors: Iterable[Loaded], dtype: torch.dtype, device: torch.device) -> M:
    """Put each tensor in its place right after reading it, so there are never two copies of the weights.

    Raises:
        BadInput: a tensor is missing or unexpected, or has the wrong shape.
    """
    if isinstance(model, UMT5EncoderModel):
        model.tie_weights()
    places = dict(model.named_parameters())
    weights, file, unexpected = {}, None, []
    for file, original_name, converted in tensors:
        for name, value in converted.items():
            place = places.pop(name, None)
            if place is None:
                unexpected.append(original_name)
                continue
            value = _shaped(file, original_name, value, place)
            wanted = torch.float32 if kept_in_float32(model, name) else dtype
            # A copy, because a slice or a mapped page would keep the whole file in memory.
            value = own_rows(place, value).to(device, wanted, copy=True)
            weights[name] = _distribute(place, value) if isinstance(place, DTensor) else value
    if unexpected:
        refuse(file, "unexpected", unexpected)
    if places:
        refuse(file, "missing", sorted(places))
    model.load_state_dict(weights, strict=False, assign=True)
    if isinstance(model, UMT5EncoderModel):
        model.tie_weights()
    nn.Module.to(model, device)
    return model.eval().requires_grad_(False)


@torch.no_grad()
def refill(model: nn.Module, tensors: Iterable[Loaded], names: Collection[str]) -> None:
    """Overwrite the weights of these names in place. They then equal those of a model that `fill` has filled.

    Raises:
        BadInput: a tensor is missing, or has the wrong shape. Some weights may be overwritten already.
    """
    missing, file = set(names), None
    for file, original_name, converted in tensors:
        for name in converted.keys() & missing:
            place = model.get_parameter(name)
            value = own_rows(place, _shaped(file, original_name, converted[name], place))
            (place.to_local() if isinstance(place, DTensor) else place).copy_(value)
            missing.remove(name)
    if missing:
        refuse(file, "missing", sorted(missing))


def refuse(place: Path | None, kind: str, names: list[str]) -> None:
    """Raise BadInput for tensors that are missing, unexpected or mismatched, as `kind` says."""
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    raise BadInput(f"{place}: {len(names)} {kind} tensor(s): {shown}; the snapshot is damaged or of another model")


def _distribute(place: DTensor, rows: Tensor) -> DTensor:
    return DTensor.from_local(
        rows, place.device_mesh, place.placements, run_check=False, shape=place.shape, stride=place.stride()
    )


def _shaped(file: Path, name: str, value: Tensor, place: Tensor) -> Tensor:
    """The value in the shape of its place. Some biases have more or fewer dimensions of length 1."""
    if value.shape == place.shape:
        return value
    if value.numel() == place.numel() and value.squeeze().shape == place.squeeze().shape:
        return value.reshape(place.shape)
    raise BadInput(
        f"{file}: tensor {name!r} has shape {tuple(value.shape)}, but the snapshot's configuration asks for "
        f"{tuple(place.shape)}"
    )
