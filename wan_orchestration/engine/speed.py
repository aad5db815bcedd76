"""Estimates a segment's operations and seconds from shapes, and measures a device's peak speed."""

import time

import torch

from wan_orchestration.engine.memory.placement import CONTEXT_TOKENS, STREAMED, Name, SegmentShape
from wan_orchestration.engine.memory.sizes import Sizes

EFFICIENCY = 0.67
"""Share of the speed of a large bfloat16 matrix product that the transformer reaches, not compiled (H100, 480p)."""
VAE_EFFICIENCY = 0.16
"""The same share for the VAE, whose convolutions run in TF32 (H100, 480p and 720p)."""
VAE_FLOPS = 1340e12 / (1280 * 720 * 77)
"""Operations of the 14B snapshot's VAE for each pixel of a segment: to encode pose and known frames, and to decode."""
VAE_WIDTH = 96
"""Channels of that VAE's outermost layer."""
BUS = 20e9
"""Bytes a second from pinned host memory to a device (PCIe 4.0 x16)."""


def forward_flops(sizes: Sizes, segment: SegmentShape) -> float:
    """Floating-point operations of one forward of the transformer, without what is computed once per job or segment."""
    seen = segment.driving_tokens // ((segment.frames - 1) // 4 + 1)
    return _flops(sizes, segment.tokens, segment.tokens + seen)


def driving_flops(sizes: Sizes, segment: SegmentShape) -> float:
    """Operations of the driving frames' forward, once a segment."""
    return _flops(sizes, segment.driving_tokens, segment.driving_tokens)


def _flops(sizes: Sizes, tokens: int, seen: int) -> float:
    dim, layers = sizes.dim, sizes.layers
    linear = 2 * tokens * layers * (sizes.block_parameters - 4 * dim**2)
    attention = 4 * tokens * (seen + CONTEXT_TOKENS) * dim * layers
    return linear + attention + 2 * tokens * 2 * dim**2 * sizes.adapters


def segment_seconds(
    sizes: Sizes, segment: SegmentShape, steps: int, placement: Name, tflops: float, ranks: int = 1
) -> float:
    """Expected seconds of a segment, on GPUs with `tflops` dense bfloat16 TFLOP/s each."""
    forward, driving = (
        flops(sizes, segment) / ranks / (EFFICIENCY * tflops * 1e12) for flops in (forward_flops, driving_flops)
    )
    if placement in STREAMED:
        forward = max(forward, sizes.transformer / BUS)
    pixels = segment.height * segment.width * segment.frames
    vae = VAE_FLOPS * pixels * (sizes.vae_width / VAE_WIDTH) ** 2 / ranks / (VAE_EFFICIENCY * tflops * 1e12)
    travel = sizes.transformer / BUS if placement == "swap" else 0
    return steps * forward * (2 if segment.guided else 1) + driving + vae + travel


def measured_tflops(device: torch.device, dtype: torch.dtype, size: int = 8192) -> float:
    """TFLOP/s of a large matrix product on this device."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    fastest = float("inf")
    for _ in range(4):
        started = time.perf_counter()
        torch.matmul(a, b)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        fastest = min(fastest, time.perf_counter() - started)
    return 2 * size**3 / fastest / 1e12
