"""Two ways to keep a transformer's weights in host memory: swap all of them out, or stream them block by block.

The weights of each block lie in one buffer of pinned host memory, so one copy brings them to the device.
"""

import mmap
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import torch
from torch import Tensor, nn

from wan_orchestration.engine.torch_internals import from_plain_tensors, plain_tensors
from wan_orchestration.engine.transformer.model import AnimateTransformer

ALIGNMENT = 256
"""Each weight begins at a multiple of this many bytes."""


class Packed:
    """A module whose weights lie in one buffer of host memory, until `use` makes it read them from elsewhere.

    Args:
        module: its weights may be on any device; they are moved one by one.
        pin: register the buffer with CUDA, so that copies from it are fast and asynchronous.
    """

    def __init__(self, module: nn.Module, pin: bool) -> None:
        self.places = [(owner, name) for owner in module.modules() for name, _ in owner.named_parameters(recurse=False)]
        parts = [part for owner, name in self.places for part in plain_tensors(owner.get_parameter(name))]
        self.size = sum(_aligned(part.nbytes) for part in parts)
        self.host = host_memory(self.size)
        if pin:
            _pin(self, self.host)
        self.update()
        self.use(self.host)

    def update(self) -> None:
        """Copy the weights that the module reads to the host's buffer."""
        parts = [part for owner, name in self.places for part in plain_tensors(owner.get_parameter(name))]
        for view, part in zip(_views(self.host, parts), parts, strict=True):
            view.copy_(part)

    def use(self, memory: Tensor) -> None:
        """Make the module read its weights from `memory`: `host`, or a copy of it on any device.

        The copy may be filled later, but before the module runs.
        """
        offset = 0
        for owner, name in self.places:
            parameter = owner.get_parameter(name)
            parts = plain_tensors(parameter)
            value = from_plain_tensors(parameter, _views(memory[offset:], parts))
            setattr(owner, name, nn.Parameter(value, requires_grad=False))
            offset += sum(_aligned(part.nbytes) for part in parts)


class Swap:
    """Keeps a copy of a transformer's weights in host memory, so the device's copy can be dropped and restored.

    Weights change only in `changing`, so they are not copied back to the host at other times.
    """

    def __init__(self, transformer: AnimateTransformer, device: torch.device) -> None:
        self.device = device
        rest = [child for child in transformer.children() if not isinstance(child, nn.ModuleList)]
        self.modules = [one for one in (*transformer.trunk.order(), *rest) if any(True for _ in one.parameters())]
        self.packed: list[Packed] = []

    def swap_out(self) -> None:
        """Drop the device's copy."""
        if not self.packed:
            self.packed = [Packed(module, pin=self.device.type == "cuda") for module in self.modules]
        for packed in self.packed:
            packed.use(packed.host)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def swap_in(self) -> None:
        """Copy the weights to the device."""
        for packed in self.packed:
            packed.use(packed.host.to(self.device, non_blocking=True))

    @contextmanager
    def changing(self) -> Iterator[None]:
        """A context in which the weights may be changed where they are, on the device."""
        yield
        for packed in self.packed:
            packed.update()

    def undo(self) -> None:
        """Leave all weights on the device."""
        self.packed = []


class Stream:
    """Copies a transformer's blocks and face adapters to the device one by one, each while the previous one runs.

    The modules use two slots of device memory in turn. A copy waits until the module that was in its slot has run.
    """

    def __init__(self, transformer: AnimateTransformer, device: torch.device) -> None:
        self.trunk, self.device, cuda = transformer.trunk, device, device.type == "cuda"
        modules = transformer.trunk.order()
        self.index = {module: index for index, module in enumerate(modules)}
        self.packed = [Packed(module, pin=cuda) for module in modules]
        size = max(packed.size for packed in self.packed)
        self.slots = [torch.empty(size, dtype=torch.uint8, device=device) for _ in range(2)]
        self.held: list[int | None] = [None, None]
        """Index of the module that is in each slot or is being copied to it."""
        self._use_slots()
        self.copying = torch.cuda.Stream(device) if cuda else None
        self.copied, self.used = ([torch.cuda.Event() for _ in range(2)] if cuda else [] for _ in range(2))
        if self.copying:
            for slot in self.slots:
                slot.record_stream(self.copying)  # the allocator must not reuse a slot during a copy
            for event in self.used:
                event.record(torch.cuda.current_stream(device))  # earlier work may still use the slots' memory

    @contextmanager
    def on_device(self, module: nn.Module) -> Iterator[None]:
        """A context to run one module in. Its weights are on the device; the next module's are being copied there."""
        index = self.index[module]
        self._fetch(index)
        following = (index + 1) % len(self.packed)
        if following % 2 != index % 2:
            self._fetch(following)
        if self.copying:
            torch.cuda.current_stream(self.device).wait_event(self.copied[index % 2])
        yield
        if self.copying:
            self.used[index % 2].record(torch.cuda.current_stream(self.device))

    @contextmanager
    def changing(self) -> Iterator[None]:
        """A context in which the modules read their weights from host memory, where these may be changed."""
        self._use_host()
        yield
        self._use_slots()

    def undo(self) -> None:
        """Copy all weights to the device, and leave them there."""
        self._use_host()
        self.trunk.on_device, self.trunk.streamed, self.slots = nullcontext, False, []
        while self.packed:
            packed = self.packed.pop()
            packed.use(packed.host.to(self.device))

    def _use_slots(self) -> None:
        for index, packed in enumerate(self.packed):
            packed.use(self.slots[index % 2])
        self.held = [None, None]

    def _use_host(self) -> None:
        if self.copying:
            torch.cuda.synchronize(self.device)  # copies from host memory may still run
        for packed in self.packed:
            packed.use(packed.host)

    def _fetch(self, index: int) -> None:
        slot, packed = index % 2, self.packed[index]
        if self.held[slot] == index:
            return
        with torch.cuda.stream(self.copying) if self.copying else nullcontext():
            if self.copying:
                self.copying.wait_event(self.used[slot])
            self.slots[slot][: packed.size].copy_(packed.host, non_blocking=True)
            if self.copying:
                self.copied[slot].record(self.copying)
        self.held[slot] = index


def stream(transformer: AnimateTransformer, device: torch.device) -> Stream:
    """Keep the blocks and face adapters in host memory, and copy each to the device while the previous one runs."""
    for child in transformer.children():
        if not isinstance(child, nn.ModuleList):
            nn.Module.to(child, device)
    table = transformer.scale_shift_table
    transformer.scale_shift_table = nn.Parameter(table.to(device), requires_grad=False)
    streaming = Stream(transformer, device)
    transformer.trunk.on_device = streaming.on_device
    transformer.trunk.streamed = True
    return streaming


def host_memory(size: int) -> Tensor:
    """A buffer of `size` bytes that shares no page with others. CUDA registers whole pages, and no page twice."""
    return torch.frombuffer(mmap.mmap(-1, max(1, size)), dtype=torch.uint8)[:size]


def _pin(owner: object, memory: Tensor) -> None:
    """Register `memory` with CUDA for as long as its owner lives.

    PyTorch's own pinned memory would be rounded up to a power of two.
    """
    status = int(_runtime().cudaHostRegister(memory.data_ptr(), memory.nbytes, 0))
    if status:
        text = f"CUDA cannot pin {memory.nbytes / 1e9:.1f} GB of host memory (error {status}): copies will be slow"
        warnings.warn(text, stacklevel=2)
        with suppress(RuntimeError):  # CUDA reports the error again at the next kernel, so run one here
            torch.ones(1, device="cuda")
    else:
        weakref.finalize(owner, _unpin, memory.data_ptr()).atexit = False


def _unpin(address: int) -> None:
    torch.cuda.synchronize()  # copies from this memory may still run
    _runtime().cudaHostUnregister(address)


def _runtime() -> Any:
    return torch.cuda.cudart()


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _views(memory: Tensor, parts: list[Tensor]) -> list[Tensor]:
    """Views of a buffer for tensors like these, one after the other."""
    views, offset = [], 0
    for part in parts:
        views.append(memory[offset : offset + part.nbytes].view(part.dtype).view(part.shape))
        offset += _aligned(part.nbytes)
    return views
