"""What a launch keeps from its start. A run takes a warm launch over only if it would start it in the same way."""

import json
import sys
from collections.abc import Collection, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import wan_orchestration
from wan_orchestration.settings.environment import environment

DECISIVE_VARIABLES = (
    "CUBLAS_", "CUDA_", "CUDNN_", "GLOO_", "GOMP_", "HF_", "KMP_", "LD_", "MKL_", "MODELSCOPE_", "NCCL_", "NVIDIA_",
    "OMP_", "OPENBLAS_", "PATH", "PYTHON", "PYTORCH_", "TMPDIR", "TORCH", "TRITON_", "WAN_",
)  # fmt: skip
"""Beginnings of the environment variables that a launch keeps from its start. If one differs, another is started."""


def launch_key(variables: Mapping[str, str], always: Collection[str] = (), **facts: Any) -> str:
    """A hash of the code, the folders, `facts` and the decisive environment variables, those named in `always` too."""
    package = Path(wan_orchestration.__file__).parent
    facts |= {
        "python": sys.executable,
        # A launch runs the code that it was started with.
        "code": max(file.stat().st_mtime for file in package.rglob("*.py")),
        "folders": environment().model_dump(mode="json"),
        "variables": {
            name: value
            for name, value in sorted(variables.items())
            if name in always or name.startswith(DECISIVE_VARIABLES)
        },
    }
    return sha256(json.dumps(facts).encode()).hexdigest()[:16]
