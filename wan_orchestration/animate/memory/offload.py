"""Ways to let a transformer take less of the device: give way to the VAE as a whole, or stream block by block."""

import torch
from diffusers.hooks.group_offloading import apply_group_offloading
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from wan_orchestration.animate.transformer import AnimateTransformer


class Parking:
    """Keeps a model's weights in host memory too, so that the device's copy can be dropped and made again.

    Weights do not change, so that they travel in one direction only.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self.device, self.parameters = device, [part for one in model.parameters() for part in _parts(one)]
        self.kept: list[Tensor] = []

    def leave(self) -> None:
        """Drop the device's copy."""
        if not self.kept:
            pin = self.device.type == "cuda"
            for parameter in self.parameters:
                kept = torch.empty_like(parameter.data, device="cpu", pin_memory=pin)
                self.kept.append(kept.copy_(parameter.data))
        for parameter, kept in zip(self.parameters, self.kept, strict=True):
            parameter.data = kept
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def come(self) -> None:
        """Copy the weights to the device."""
        for parameter, kept in zip(self.parameters, self.kept, strict=True):
            parameter.data = kept.to(self.device, non_blocking=True)


def _parts(parameter: Tensor) -> list[Tensor]:
    """The plain tensors that a parameter consists of: itself, or what a quantised one holds."""
    if not is_traceable_wrapper_subclass(parameter):
        return [parameter]
    names, _ = parameter.__tensor_flatten__()
    return [getattr(parameter, name) for name in names]


def stream(transformer: AnimateTransformer, device: torch.device) -> None:
    """Leave the blocks and face adapters in host memory and bring each to the device as the one before it runs."""
    apply_group_offloading(
        transformer.trunk,
        onload_device=device,
        offload_type="block_level",
        num_blocks_per_group=1,
        use_stream=device.type == "cuda",
        record_stream=device.type == "cuda",
    )
    streamed = {id(one) for one in transformer.trunk.parameters()} | {id(one) for one in transformer.trunk.buffers()}
    for one in (*transformer.parameters(), *transformer.buffers()):
        if id(one) not in streamed:
            one.data = one.data.to(device)
    transformer.trunk.streamed = True
