"""Where compiled kernels are kept, so that a later launch compiles nothing that an earlier one has compiled."""

import os
from pathlib import Path

import torch


def keep_compiled(cache_root: Path | None) -> None:
    """Have torch.compile keep its graphs and kernels under `cache_root`, unless its own variables say where.

    A block that cannot be compiled, for want of a C++ compiler or of Triton, runs uncompiled, and a warning says why.
    """
    torch._dynamo.config.suppress_errors = True
    if cache_root:
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_root / "inductor"))
        os.environ.setdefault("TRITON_CACHE_DIR", str(cache_root / "triton"))
