"""Two ways to keep a transformer's weights in host memory: swap all of them out, or stream them block by block.

The weights of each block lie in one buffer of pinned host memory, so one copy brings them to the device.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from wan_orchestration.engine.memory.prefetch import Prefetcher, aligned, host_memory, views
from wan_orchestration.engine.memory.prefetch import pin as register
from wan_orchestration.engine.torch_internals import from_plain_tensors, plain_tensors
from wan_orchestration.engine.transformer.model import WanTransformer


class Packed:
    """A module whose weights lie in one buffer of host memory, until `use` makes it read them from elsewhere.

    Args:
        module: its weights may be on any device; they are moved one by one.
        pin: register the buffer with CUDA, so that copies from it are fast and asynchronous.
    """

    def __init__(self, module: nn.Module, pin: bool) -> None:
        self.places = [(owner, name) for owner in module.modules() for name, _ in owner.named_parameters(recurse=False)]
        parts = [part for owner, name in self.places for part in plain_tensors(owner.get_parameter(name))]
        self.size = sum(aligned(part.nbytes) for part in parts)
        self.host = host_memory(self.size)
        if pin:
            register(self, self.host)
        self.update()
        self.use(self.host)

    def update(self) -> None:
        """Copy the weights that the module reads to the host's buffer."""
        parts = [part for owner, name in self.places for part in plain_tensors(owner.get_parameter(name))]
        for view, part in zip(views(self.host, parts), parts, strict=True):
            view.copy_(part)

    def use(self, memory: Tensor) -> None:
        """Make the module read its weights from `memory`: `host`, or a copy of it on any device.

        The copy may be filled later, but before the module runs.
        """
        offset = 0
        for owner, name in self.places:
            parameter = owner.get_parameter(name)
            parts = plain_tensors(parameter)
            value = from_plain_tensors(parameter, views(memory[offset:], parts))
            setattr(owner, name, nn.Parameter(value, requires_grad=False))
            offset += sum(aligned(part.nbytes) for part in parts)


class Swap:
    """Keeps a copy of a transformer's weights in host memory, so the device's copy can be dropped and restored.

    Weights change only in `changing`, so they are not copied back to the host at other times.
    """

    def __init__(self, transformer: WanTransformer, device: torch.device) -> None:
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
    """Copies the modules of a transformer's trunk to the device one by one, each while the previous one runs."""

    def __init__(self, transformer: WanTransformer, device: torch.device) -> None:
        self.trunk, self.device = transformer.trunk, device
        modules = transformer.trunk.order()
        self.index = {module: index for index, module in enumerate(modules)}
        self.packed = [Packed(module, pin=device.type == "cuda") for module in modules]
        self.prefetcher: Prefetcher | None = Prefetcher([packed.host for packed in self.packed], device)
        self._use_slots()

    @contextmanager
    def on_device(self, module: nn.Module) -> Iterator[None]:
        """A context to run one module in. Its weights are on the device; the next module's are being copied there."""
        assert self.prefetcher is not None
        index = self.index[module]
        self.prefetcher.fetch(index, index % 2)
        following = (index + 1) % len(self.packed)
        if following % 2 != index % 2:
            self.prefetcher.fetch(following, following % 2)
        with self.prefetcher.using(index % 2):
            yield

    @contextmanager
    def changing(self) -> Iterator[None]:
        """A context in which the modules read their weights from host memory, where these may be changed."""
        self._use_host()
        yield
        self._use_slots()

    def undo(self) -> None:
        """Copy all weights to the device, and leave them there."""
        self._use_host()
        self.trunk.on_device, self.trunk.streamed, self.prefetcher = nullcontext, False, None
        while self.packed:
            packed = self.packed.pop()
            packed.use(packed.host.to(self.device))

    def _use_slots(self) -> None:
        assert self.prefetcher is not None
        for index, packed in enumerate(self.packed):
            packed.use(self.prefetcher.slots[index % 2])
        self.prefetcher.forget()

    def _use_host(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # copies from host memory may still run
        for packed in self.packed:
            packed.use(packed.host)


def stream(transformer: WanTransformer, device: torch.device) -> Stream:
    """Keep the modules of the trunk in host memory, and copy each to the device while the previous one runs."""
    for child in transformer.children():
        if not isinstance(child, nn.ModuleList):
            nn.Module.to(child, device)
    table = transformer.scale_shift_table
    transformer.scale_shift_table = nn.Parameter(table.to(device), requires_grad=False)
    streaming = Stream(transformer, device)
    transformer.trunk.on_device = streaming.on_device
    transformer.trunk.streamed = True
    return streaming
