"""8-bit weights for the transformer's blocks, by torchao."""

import torch
from torch import nn

from wan_orchestration.engine.transformer.model import WanTransformer
from wan_orchestration.errors import BadInput
from wan_orchestration.settings.generate import Quantization

MATMUL_CAPABILITY = (8, 9)
"""Lowest compute capability of CUDA devices that multiply 8-bit floats."""


def check(how: Quantization, device: torch.device, fsdp: bool) -> None:
    """Raise BadInput if torchao is missing, or if this device or launch does not support the quantization."""
    if how == "off":
        return
    try:
        import torchao  # noqa: F401, PLC0415 (an extra)  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise BadInput(f"quantization: {how} needs torchao; install it with: uv sync --extra fp8") from None
    if fsdp:
        raise BadInput(f"quantization: {how} and WAN_ENABLE_FSDP cannot be combined; turn one of them off")
    if how == "fp8_matmul" and (device.type != "cuda" or torch.cuda.get_device_capability(device) < MATMUL_CAPABILITY):
        raise BadInput(
            "quantization: fp8_matmul needs an NVIDIA GPU of compute capability 8.9 or more (Ada, Hopper, Blackwell); "
            "fp8 saves the same memory anywhere"
        )


def quantize(transformer: WanTransformer, how: Quantization, device: torch.device) -> None:
    """Convert the matrices of the trunk to float8 with a scale for each row, one block at a time.

    Each block is moved to `device`, quantised and left there, so the device holds at most one block unquantised.
    """
    from torchao.quantization import (  # noqa: PLC0415 (an extra; takes seconds)  # pyright: ignore[reportMissingImports]
        Float8DynamicActivationFloat8WeightConfig,
        Float8WeightOnlyConfig,
        PerRow,
        quantize_,
    )

    if how == "fp8_matmul":
        config = Float8DynamicActivationFloat8WeightConfig(granularity=PerRow(), set_inductor_config=False)
    else:
        config = Float8WeightOnlyConfig(set_inductor_config=False)
    for module in transformer.trunk.order():
        nn.Module.to(module, device)
        quantize_(module, config)
    nn.Module.to(transformer, device)
