"""How much memory there is, on a device and in the host, and whether an error says that there was none left."""

import errno

import psutil
import torch

SAID_BY_LIBRARIES = (
    "out of memory",  # CUDA, also when it pins host memory, and NCCL
    "allocate memory",  # PyTorch's allocator for the CPU and the system: can't, cannot
    "not enough memory",
    "alloc_failed",  # cuBLAS, cuDNN
)
"""In messages of RuntimeError, in lower case."""


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that a device, or this machine, had no memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in SAID_BY_LIBRARIES)


def device_memory(device: torch.device) -> int:
    """Bytes of a CUDA device that this process may use: free ones and its own."""
    free, total = torch.cuda.mem_get_info(device)
    usable = int(total * torch.cuda.get_per_process_memory_fraction(device))
    return min(free + torch.cuda.memory_reserved(device), usable)


def free_memory(device: torch.device) -> int:
    """Bytes of a device, or of the host for the CPU, that nothing of this process takes."""
    if device.type == "cpu":
        return psutil.virtual_memory().available
    return device_memory(device) - torch.cuda.memory_allocated(device)
