"""The device that a rank works on, and the precision it computes in."""

import torch

from wan_orchestration.engine.parallel.ranks import Ranks
from wan_orchestration.errors import BadInput
from wan_orchestration.settings.generate import GenerateSettings


def pick_device(settings: GenerateSettings, ranks: Ranks) -> tuple[torch.device, torch.dtype]:
    """This rank's device and dtype, from the settings. "auto": CUDA if there is one; bfloat16 on CUDA, else float32.

    Raises:
        BadInput: the settings want CUDA and there is none, or there are fewer devices than ranks.
    """
    available = torch.cuda.is_available()
    if settings.device == "cuda" and not available:
        raise BadInput("device: cuda is set, but PyTorch finds no CUDA device; use auto or cpu")
    name = settings.device if settings.device != "auto" else ("cuda" if available else "cpu")
    dtype = settings.dtype if settings.dtype != "auto" else ("bfloat16" if name == "cuda" else "float32")
    if name == "cpu":
        return torch.device("cpu"), getattr(torch, dtype)
    index = torch.cuda.current_device() if ranks.size == 1 else ranks.local_rank
    if index >= torch.cuda.device_count():
        raise BadInput(
            f"process {index + 1} of this machine has no CUDA device: there are {torch.cuda.device_count()}; start at "
            "most as many processes (--nproc-per-node), and check CUDA_VISIBLE_DEVICES"
        )
    return torch.device("cuda", index), getattr(torch, dtype)


def device_name(device: torch.device) -> str:
    """The card's name, or cpu."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def wants_tf32(settings: GenerateSettings, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether to compute float32 convolutions in TF32, which CPUs do not have."""
    return device.type == "cuda" and dtype != torch.float32 and settings.tf32


def use_tf32(settings: GenerateSettings, device: torch.device, dtype: torch.dtype) -> bool:
    """Set whether this process uses TF32, see `wants_tf32`, and return it. Matrix products never do."""
    wanted = wants_tf32(settings, device, dtype)
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = wanted, False
    return wanted
