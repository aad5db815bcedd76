"""Ways to let a transformer take less of the device: give way to the VAE as a whole, or stream block by block.

The weights of each block lie in one piece of host memory that CUDA reads directly, so that one copy brings all of them.
"""

import mmap
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from wan_orchestration.animate.transformer.model import AnimateTransformer

ALIGNMENT = 256
"""Bytes at whose multiples a weight begins."""


class Packed:
    """A module whose weights lie in one piece of host memory, and nowhere else until they are to be used.

    Args:
        module: with its weights anywhere; they are moved one by one.
        pin: have CUDA read the piece directly.
    """

    def __init__(self, module: nn.Module, pin: bool) -> None:
        self.places = [(owner, name) for owner in module.modules() for name, _ in owner.named_parameters(recurse=False)]
        parts = [part for owner, name in self.places for part in _parts(owner.get_parameter(name))]
        self.size = sum(_aligned(part.nbytes) for part in parts)
        self.host = host_memory(self.size)
        if pin:
            _pin(self, self.host)
        for view, part in zip(_views(self.host, parts), parts, strict=True):
            view.copy_(part)
        self.use(self.host)

    def use(self, memory: Tensor) -> None:
        """Have the module's weights be those in `memory`, which is or will be a copy of `host`, on any device."""
        offset = 0
        for owner, name in self.places:
            parameter = owner.get_parameter(name)
            parts = _parts(parameter)
            value = _rebuilt(parameter, _views(memory[offset:], parts))
            owner._parameters[name] = nn.Parameter(value, requires_grad=False)
            offset += sum(_aligned(part.nbytes) for part in parts)


class Parking:
    """Keeps a transformer's weights in host memory too, so that the device's copy can be dropped and made again.

    Weights do not change, so that they travel in one direction only.
    """

    def __init__(self, transformer: AnimateTransformer, device: torch.device) -> None:
        self.device = device
        rest = [child for child in transformer.children() if not isinstance(child, nn.ModuleList)]
        self.modules = [one for one in (*transformer.trunk.order(), *rest) if any(True for _ in one.parameters())]
        self.packed: list[Packed] = []

    def leave(self) -> None:
        """Drop the device's copy."""
        if not self.packed:
            self.packed = [Packed(module, pin=self.device.type == "cuda") for module in self.modules]
        for packed in self.packed:
            packed.use(packed.host)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def come(self) -> None:
        """Copy the weights to the device."""
        for packed in self.packed:
            packed.use(packed.host.to(self.device, non_blocking=True))


class Stream:
    """Brings a transformer's blocks and face adapters to the device one after the other, each as the last one runs.

    Two pieces of the device's memory take them in turn, and never more: a copy into one waits until the block that was
    there before has run.
    """

    def __init__(self, transformer: AnimateTransformer, device: torch.device) -> None:
        self.device, cuda = device, device.type == "cuda"
        modules = transformer.trunk.order()
        self.index = {module: index for index, module in enumerate(modules)}
        self.packed = [Packed(module, pin=cuda) for module in modules]
        size = max(packed.size for packed in self.packed)
        self.slots = [torch.empty(size, dtype=torch.uint8, device=device) for _ in range(2)]
        self.held: list[int | None] = [None, None]
        """Which of the modules is in each slot, or on its way there."""
        for index, packed in enumerate(self.packed):
            packed.use(self.slots[index % 2])
        self.copying = torch.cuda.Stream(device) if cuda else None
        self.arrived, self.used = ([torch.cuda.Event() for _ in range(2)] if cuda else [] for _ in range(2))
        if self.copying:
            for slot in self.slots:
                slot.record_stream(self.copying)  # they are not given to anyone else while a copy is under way
            for event in self.used:
                event.record(torch.cuda.current_stream(device))  # whoever had this memory before is through with it

    @contextmanager
    def at_hand(self, module: nn.Module) -> Iterator[None]:
        """While one of the modules runs: its weights are there, and the next one's are on their way."""
        index = self.index[module]
        self._fetch(index)
        following = (index + 1) % len(self.packed)
        if following % 2 != index % 2:
            self._fetch(following)
        if self.copying:
            torch.cuda.current_stream(self.device).wait_event(self.arrived[index % 2])
        yield
        if self.copying:
            self.used[index % 2].record(torch.cuda.current_stream(self.device))

    def _fetch(self, index: int) -> None:
        slot, packed = index % 2, self.packed[index]
        if self.held[slot] == index:
            return
        with torch.cuda.stream(self.copying) if self.copying else nullcontext():
            if self.copying:
                self.copying.wait_event(self.used[slot])
            self.slots[slot][: packed.size].copy_(packed.host, non_blocking=True)
            if self.copying:
                self.arrived[slot].record(self.copying)
        self.held[slot] = index


def stream(transformer: AnimateTransformer, device: torch.device) -> None:
    """Leave the blocks and face adapters in host memory and bring each to the device as the one before it runs."""
    for child in transformer.children():
        if not isinstance(child, nn.ModuleList):
            nn.Module.to(child, device)
    table = transformer.scale_shift_table
    transformer.scale_shift_table = nn.Parameter(table.to(device), requires_grad=False)
    transformer.trunk.at_hand = Stream(transformer, device).at_hand
    transformer.trunk.streamed = True


def host_memory(size: int) -> Tensor:
    """So many bytes in whole pages of their own: CUDA registers pages, and no page twice."""
    return torch.frombuffer(mmap.mmap(-1, max(1, size)), dtype=torch.uint8)[:size]


def _pin(owner: object, memory: Tensor) -> None:
    """Have CUDA read `memory` directly for as long as its owner lives.

    It is registered as it is: what PyTorch pins itself is memory of its own, rounded up to a power of two.
    """
    status = int(_runtime().cudaHostRegister(memory.data_ptr(), memory.nbytes, 0))
    if status:
        text = f"CUDA cannot pin {memory.nbytes / 1e9:.1f} GB of host memory (error {status}): copies will be slow"
        warnings.warn(text, stacklevel=2)
        with suppress(RuntimeError):  # CUDA keeps the error for whoever starts a kernel next, which would be blamed
            torch.ones(1, device="cuda")
    else:
        weakref.finalize(owner, _unpin, memory.data_ptr()).atexit = False


def _unpin(address: int) -> None:
    torch.cuda.synchronize()  # copies from there may be under way
    _runtime().cudaHostUnregister(address)


def _runtime() -> Any:
    return torch.cuda.cudart()


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _views(memory: Tensor, parts: list[Tensor]) -> list[Tensor]:
    """Places in a piece of memory for tensors like these, one behind the other."""
    views, offset = [], 0
    for part in parts:
        views.append(memory[offset : offset + part.nbytes].view(part.dtype).view(part.shape))
        offset += _aligned(part.nbytes)
    return views


def _parts(parameter: Tensor) -> list[Tensor]:
    """The plain tensors that a parameter consists of: itself, or what a quantised one holds."""
    if not is_traceable_wrapper_subclass(parameter):
        return [parameter.detach()]
    names, _ = parameter.__tensor_flatten__()
    return [getattr(parameter, name) for name in names]


def _rebuilt(parameter: Tensor, parts: list[Tensor]) -> Tensor:
    """A parameter like this one of other parts."""
    if not is_traceable_wrapper_subclass(parameter):
        return parts[0]
    names, context = parameter.__tensor_flatten__()
    kind: Any = type(parameter)
    return kind.__tensor_unflatten__(dict(zip(names, parts, strict=True)), context, parameter.shape, parameter.stride())
