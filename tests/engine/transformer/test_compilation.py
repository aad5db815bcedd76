"""Functions that run compiled, or uncompiled where compiling fails."""

import time
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch._dynamo.utils import counters

from wan_orchestration.engine.transformer import compilation as compiled
from wan_orchestration.engine.transformer.compilation import Compilation, compiling_pays
from wan_orchestration.stopwatch import Stopwatch

CUDA = torch.device("cuda", 0)


def double(x):
    return 2 * x


def broken(function):
    def call(*arguments):
        raise RuntimeError("\nFailed to find a compiler\nand more")

    return call


def test_a_function_that_does_not_compile_runs_uncompiled_and_the_reason_is_kept(monkeypatch):
    monkeypatch.setattr(compiled, "_compiled", broken)
    compilation = Compilation(wanted=True)
    x = torch.ones(1, 3, 2)
    for _ in range(2):
        assert torch.equal(compilation.run(double, x), 2 * x)
    assert not compilation.compiled
    assert compilation.error == "RuntimeError: Failed to find a compiler"


def test_a_function_that_has_run_compiled_may_raise(monkeypatch):
    monkeypatch.setattr(compiled, "_compiled", lambda function: function)
    stopwatch = Stopwatch()
    compilation = Compilation(True, stopwatch)
    compilation.run(lambda x: time.sleep(0.05), torch.ones(1, 3, 2))
    assert 0.05 <= stopwatch.read()["compiling"] < 0.1
    compilation.run(double, torch.ones(1, 3, 2))
    spent = stopwatch.read()["compiling"]
    compilation.run(double, torch.ones(1, 3, 2))
    assert stopwatch.read()["compiling"] == spent
    monkeypatch.setattr(compiled, "_compiled", broken)
    with pytest.raises(RuntimeError, match="compiler"):
        compilation.run(double, torch.ones(1, 3, 2))


def test_running_out_of_memory_is_not_a_failure_to_compile(monkeypatch):
    def full(function):
        def call(*arguments):
            raise torch.OutOfMemoryError("full")

        return call

    monkeypatch.setattr(compiled, "_compiled", full)
    with pytest.raises(torch.OutOfMemoryError):
        Compilation(wanted=True).run(double, torch.ones(1, 3, 2))


@torch._dynamo.config.patch(recompile_limit=2)  # monkeypatch would delete PyTorch's own value when it ends
def test_a_function_is_compiled_for_any_number_of_dtypes(monkeypatch):
    """Beyond PyTorch's limit of graphs it would run uncompiled."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    monkeypatch.setattr(compiled, "_run_here", set())
    torch._dynamo.reset()
    counters.clear()
    dtypes = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.float32]
    for graphs, dtype in enumerate(dtypes, 1):
        compilation, x = Compilation(wanted=True), torch.ones(1, 3, 2, dtype=dtype)
        assert torch.equal(compilation.run(double, x), 2 * x)
        assert (compilation.error, counters["stats"]["unique_graphs"]) == (None, graphs)
    assert compiled._run_here == {double}


def test_compiling_pays_for_long_jobs_only(monkeypatch, tmp_path):
    """The 14B model's widths on an H100: a segment at 480p saves less than 40 s, one at 720p about 40 s."""
    card = SimpleNamespace(memory_clock_rate=2_619_000, memory_bus_width=5120)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    monkeypatch.setattr(compiled, "_run_here", set())
    small, large = (tokens * 5120 * 2 for tokens in (32_760, 75_600))
    assert not compiling_pays(20, 40, small, CUDA, None)
    assert compiling_pays(20 * 10, 40, small, CUDA, None)
    assert compiling_pays(20 * 3, 40, large, CUDA, None)
    assert not compiling_pays(6, 40, small, CUDA, None)
    (tmp_path / "triton").mkdir()  # kernels of an earlier launch
    assert compiling_pays(20 * 2, 40, small, CUDA, tmp_path)
    monkeypatch.setattr(compiled, "_run_here", {double})
    assert not compiling_pays(1, 40, small, CUDA, None), "frames must not depend on earlier jobs of the process"
