"""Compiles functions for the device if that saves time, with a fallback and a cache of kernels."""

import os
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wan_orchestration.engine.memory.capacity import ran_out_of_memory
from wan_orchestration.engine.torch_internals import mark_dynamic, raise_for_too_many_graphs
from wan_orchestration.stopwatch import Stopwatch

COLD_SECONDS, WARM_SECONDS = 15.0, 5.0
"""Expected compile times at the 14B model's widths: with an empty cache of kernels, and with a filled one. An H100 with
16 cores took 11.6 s and 4.3 s."""
SAVED_MAPS = 105
"""Passes over a feature map, (tokens, dim) in the transformer's dtype, that a compiled block saves. On an H100 that is
0.43 s of a denoising step at 480p."""
ASSUMED_BANDWIDTH = 1e12
"""Bytes a second of a device's memory, if PyTorch does not report it."""

_run_here: set[Callable[..., Any]] = set()
"""Functions that have run compiled in this process. They need no more compiling."""


class Compilation:
    """Runs functions compiled if wanted, and uncompiled once compiling has failed.

    Args:
        wanted: whether to compile.
        stopwatch: measures the first call of each function, which compiles it.
    """

    def __init__(self, wanted: bool, stopwatch: Stopwatch | None = None) -> None:
        self.wanted = wanted
        self.stopwatch = stopwatch or Stopwatch()
        self.error: str | None = None
        """Why the functions run uncompiled although compiling was wanted."""
        self._proven: set[Callable[..., Any]] = set()

    @property
    def compiled(self) -> bool:
        return self.wanted and self.error is None

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function of a module and tensors. Dimension 1 of the tensors (tokens) may change between calls."""
        if not self.compiled:
            return function(*arguments)
        if function in self._proven:
            return _compiled(function)(*arguments)
        _mark_tokens(arguments)
        try:
            with self.stopwatch.during("compiling"):
                result = _compiled(function)(*arguments)
        except Exception as error:  # for instance no compiler, no Triton, a full disk
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
    """The compiled function. It has a graph for each dtype, width and kind of context that this process has used.

    At PyTorch's limit of graphs (8), it would run uncompiled without a word. Here the graphs are forgotten instead, and
    the present one is compiled again. Graphs do not refer to the modules that they were traced with.
    """
    compiled, too_many_graphs = torch.compile(function), raise_for_too_many_graphs()

    def run(*arguments: Any) -> Any:
        try:
            return compiled(*arguments)
        except too_many_graphs:
            forget_compiled()
            _mark_tokens(arguments)
            _run_here.add(function)
            return compiled(*arguments)

    return run


def _mark_tokens(arguments: Iterable[Any]) -> None:
    """Let one graph serve any number of tokens."""
    for one in arguments:
        if isinstance(one, Tensor) and one.ndim > 2 and one.shape[1] > 1:
            mark_dynamic(one, 1)


def forget_compiled() -> None:
    """Forget the graphs that this process has compiled. Their kernels stay in the cache on disk."""
    if _run_here:
        torch.compiler.reset()
        _run_here.clear()


def set_compile_cache(cache_root: Path | None) -> None:
    """Make torch.compile cache graphs and kernels under `cache_root`, unless its own environment variables are set."""
    if cache_root:
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_root / "inductor"))
        os.environ.setdefault("TRITON_CACHE_DIR", str(cache_root / "triton"))


def compiling_pays(forwards: int, layers: int, map_bytes: int, device: torch.device, cache_root: Path | None) -> bool:
    """Whether compiled blocks save more time than compiling them takes.

    It does not count what this process has compiled: a job in a warm launch has the frames that it has in a new one.

    Args:
        forwards: of the transformer, in the whole job on this rank.
        layers: blocks of the transformer.
        map_bytes: of one feature map of this rank's tokens.
        device: where the blocks run.
        cache_root: as for `set_compile_cache`.
    """
    saved = forwards * layers * SAVED_MAPS * map_bytes / _bandwidth(device)
    kept = cache_root is not None and (cache_root / "triton").is_dir()
    return saved > (WARM_SECONDS if kept else COLD_SECONDS)


def _bandwidth(device: torch.device) -> float:
    """Bytes a second of a CUDA device's memory, from its clock and bus width."""
    facts = torch.cuda.get_device_properties(device)
    clock, width = getattr(facts, "memory_clock_rate", 0), getattr(facts, "memory_bus_width", 0)  # kHz, bits
    return 2 * clock * 1e3 * width / 8 or ASSUMED_BANDWIDTH
