"""How much memory a device and the host have, and whether an error means that memory ran out."""

import errno

import psutil
import torch

MESSAGES = (
    "out of memory",  # CUDA, also when it pins host memory; NCCL
    "allocate memory",  # "can't" by PyTorch's CPU allocator, "Cannot" by the system
    "not enough memory",
    "alloc_failed",  # cuBLAS, cuDNN
)
"""Parts of the message of a RuntimeError, in lower case, which show that memory ran out."""


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that a device or the host had no memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(message in str(error).lower() for message in MESSAGES)


def device_memory(device: torch.device) -> int:
    """Bytes of a CUDA device that this process may use: the free ones and its own."""
    free, total = torch.cuda.mem_get_info(device)
    usable = int(total * torch.cuda.get_per_process_memory_fraction(device))
    return min(free + torch.cuda.memory_reserved(device), usable)


def free_memory(device: torch.device) -> int:
    """Free bytes of a device, or of the host for the CPU. PyTorch's unused cache counts as free."""
    if device.type == "cpu":
        return psutil.virtual_memory().available
    return device_memory(device) - torch.cuda.memory_allocated(device)
