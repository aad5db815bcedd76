"""Copies buffers of host memory to the device one by one, each while the one before is in use."""

import mmap
import warnings
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import torch
from torch import Tensor

ALIGNMENT = 256
"""Each tensor in a buffer begins at a multiple of this many bytes."""


class Prefetcher:
    """Two slots of device memory, which take the buffers in turn.

    A copy to a slot waits until what was in it has been used.

    Args:
        buffers: uint8, in host memory; pinned if copies are to be asynchronous.
        device: the slots' device.
    """

    def __init__(self, buffers: Sequence[Tensor], device: torch.device) -> None:
        self.buffers, self.device, cuda = buffers, device, device.type == "cuda"
        size = max(buffer.nbytes for buffer in buffers)
        self.slots = [torch.empty(size, dtype=torch.uint8, device=device) for _ in range(2)]
        self.held: list[int | None] = [None, None]
        """Index of the buffer that is in each slot or is being copied to it."""
        self.copying = torch.cuda.Stream(device) if cuda else None
        self.copied, self.used = ([torch.cuda.Event() for _ in range(2)] if cuda else [] for _ in range(2))
        if self.copying:
            for slot in self.slots:
                slot.record_stream(self.copying)  # the allocator must not reuse a slot during a copy
            for event in self.used:
                event.record(torch.cuda.current_stream(device))  # earlier work may still use the slots' memory

    def fetch(self, index: int, slot: int) -> None:
        """Begin to copy a buffer to a slot, unless it is there."""
        if self.held[slot] == index:
            return
        buffer = self.buffers[index]
        with torch.cuda.stream(self.copying) if self.copying else nullcontext():
            if self.copying:
                self.copying.wait_event(self.used[slot])
            self.slots[slot][: buffer.nbytes].copy_(buffer, non_blocking=True)
            if self.copying:
                self.copied[slot].record(self.copying)
        self.held[slot] = index

    @contextmanager
    def using(self, slot: int) -> Iterator[Tensor]:
        """A context in which the slot's buffer is read."""
        if self.copying:
            torch.cuda.current_stream(self.device).wait_event(self.copied[slot])
        yield self.slots[slot]
        if self.copying:
            self.used[slot].record(torch.cuda.current_stream(self.device))

    def store(self, index: int, parts: Sequence[Tensor]) -> None:
        """Begin to copy tensors of the device to a buffer."""
        with torch.cuda.stream(self.copying) if self.copying else nullcontext():
            if self.copying:
                self.copying.wait_stream(torch.cuda.current_stream(self.device))
            for view, part in zip(views(self.buffers[index], parts), parts, strict=True):
                view.copy_(part, non_blocking=True)
                if self.copying:
                    part.record_stream(self.copying)
        self.held = [None if one == index else one for one in self.held]

    def forget(self) -> None:
        """Forget what is in the slots: the buffers have changed."""
        self.held = [None, None]


def host_memory(size: int) -> Tensor:
    """A buffer of `size` bytes that shares no page with others. CUDA registers whole pages, and no page twice."""
    return torch.frombuffer(mmap.mmap(-1, max(1, size)), dtype=torch.uint8)[:size]


def pin(owner: object, memory: Tensor) -> None:
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


def aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def views(memory: Tensor, parts: Sequence[Tensor]) -> list[Tensor]:
    """Views of a buffer for tensors like these, one after the other."""
    found, offset = [], 0
    for part in parts:
        found.append(memory[offset : offset + part.nbytes].view(part.dtype).view(part.shape))
        offset += aligned(part.nbytes)
    return found
