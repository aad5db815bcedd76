"""Functions compiled for the device: whether that pays, what came of it, and where kernels are kept for later."""

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wan_orchestration.animate.memory.room import ran_out_of_memory
from wan_orchestration.stopwatch import Stopwatch

COLD_SECONDS, WARM_SECONDS = 40.0, 10.0
"""What compiling is expected to take at the 14B model's widths: with no kernels kept from before, and with some."""
SAVED_MAPS = 90
"""Passes over a feature map, (tokens, dim) in the transformer's dtype, that a compiled block spares: three quarters of
those that its unfused norms, modulations and rotations take."""
ASSUMED_BANDWIDTH = 1e12
"""Bytes a second of a device's memory where PyTorch does not tell."""

_run_here: set[Callable[..., Any]] = set()
"""Functions that have run compiled in this process, and cost nothing more."""


class Compilation:
    """Runs functions compiled if that is wanted, and as they are once that has failed.

    Args:
        wanted: whether to compile.
        stopwatch: counts first calls, in which functions are compiled.
    """

    def __init__(self, wanted: bool, stopwatch: Stopwatch | None = None) -> None:
        self.wanted = wanted
        self.stopwatch = stopwatch or Stopwatch()
        self.error: str | None = None
        """Why the functions run uncompiled all the same."""
        self._proven: set[Callable[..., Any]] = set()

    @property
    def compiled(self) -> bool:
        return self.wanted and self.error is None

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function of a module and tensors, whose dimension 1 may change from call to call: tokens."""
        if not self.compiled:
            return function(*arguments)
        if function in self._proven:
            return _compiled(function)(*arguments)
        for one in arguments:
            if isinstance(one, Tensor) and one.ndim > 2 and one.shape[1] > 1:
                torch._dynamo.maybe_mark_dynamic(one, 1)
        try:
            with self.stopwatch.during("compiling"):
                result = _compiled(function)(*arguments)
        except Exception as error:  # no compiler, no Triton, a full disk: many kinds, and none is a reason to fail
            if ran_out_of_memory(error):
                raise
            lines = [line for line in str(error).splitlines() if line.strip()]
            self.error = f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
            return function(*arguments)
        self._proven.add(function)
        _run_here.add(function)
        return result


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function)


def keep_compiled(cache_root: Path | None) -> None:
    """Have torch.compile keep its graphs and kernels under `cache_root`, unless its own variables say where."""
    if cache_root:
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_root / "inductor"))
        os.environ.setdefault("TRITON_CACHE_DIR", str(cache_root / "triton"))


def pays(forwards: int, layers: int, map_bytes: int, device: torch.device, cache_root: Path | None) -> bool:
    """Whether so many forwards through so many layers save more time than compiling the blocks takes.

    Args:
        forwards: of the whole job, on this rank.
        layers: blocks of the transformer.
        map_bytes: of one feature map of this rank's tokens.
        device: where the blocks run.
        cache_root: as for `keep_compiled`.
    """
    saved = forwards * layers * SAVED_MAPS * map_bytes / _bandwidth(device)
    if _run_here:
        return True
    kept = cache_root is not None and (cache_root / "triton").is_dir()
    return saved > (WARM_SECONDS if kept else COLD_SECONDS)


def _bandwidth(device: torch.device) -> float:
    """Bytes a second of a CUDA device's memory, by its clock and the width of its bus."""
    facts = torch.cuda.get_device_properties(device)
    clock, width = getattr(facts, "memory_clock_rate", 0), getattr(facts, "memory_bus_width", 0)  # kHz, bits
    return 2 * clock * 1e3 * width / 8 or ASSUMED_BANDWIDTH
