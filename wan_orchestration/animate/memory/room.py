"""How much memory there is, on a device and in the host."""

import psutil
import torch


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
