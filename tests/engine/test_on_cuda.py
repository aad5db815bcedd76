"""What the engine does on a GPU: the device, dtype and layout of every operation, at the 14B model's widths."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from fake_cuda import CUDA, FakeModels, FakeModels2, Watch, fake_cuda
from safetensors.torch import save_file
from torch._dynamo.utils import counters

from wan_orchestration.engine.lora import Lora
from wan_orchestration.engine.transformer import compilation as compiled
from wan_orchestration.families.animate.animator import Animator, SegmentInput
from wan_orchestration.families.animate_2 import animator as animator_2
from wan_orchestration.settings.generate import GenerateSettings

REFERENCE = np.zeros((600, 500, 3), np.uint8)
SMALL, LARGE = (480, 832), (720, 1280)


class KnownPrompts:
    """Stands in for the tensor cache: it knows every prompt."""

    def get(self, key, compute):
        return torch.empty(1, 20, 4096) if key.startswith("prompt") else compute().cpu()


def make_models(placement="resident", vae_dtype="float32", kind=FakeModels):
    models = kind(None, CUDA, torch.bfloat16, placement=placement, vae_dtype=getattr(torch, vae_dtype))
    models.cache = KnownPrompts()  # pyright: ignore[reportAttributeAccessIssue]
    return models


def animate(models, size: tuple[int, int], loras=(), **settings):
    """Generate two segments; returns the animator."""
    values = {"clip_len": 5, "attention": "native", "compile": "off", "sampling_steps": 1, **settings}
    settings = GenerateSettings(**values)
    animator, guide = Animator(models, settings, REFERENCE, *size, loras, segments=2), None
    pictures, faces = (np.zeros((settings.clip_len, *one, 3), np.uint8) for one in (size, (512, 512)))
    more = (pictures, pictures) if settings.mode == "replace" else ()
    for _ in range(2):
        conditions = animator.condition(SegmentInput(pictures, faces, *more), guide)
        video = animator.animate(conditions, lambda done: None)
        assert (video.device, video.dtype, video.shape) == (CUDA, torch.float32, (3, settings.clip_len, *size))
        guide = video[:, -settings.refert_num :].cpu()
    return animator


@pytest.fixture
def lora(tmp_path):
    """A LoRA of one layer of the real width."""
    name, file = "diffusion_model.blocks.0.self_attn.q.lora", tmp_path / "lora.safetensors"
    save_file({f"{name}_A.weight": torch.ones(4, 5120), f"{name}_B.weight": torch.ones(5120, 4)}, file)
    return Lora(file)


@pytest.mark.parametrize(
    "size, placement, settings",
    [
        pytest.param(SMALL, "resident", {"guide_scale": 2.0}, marks=pytest.mark.heavy),
        (LARGE, "resident", {"mode": "replace", "refert_num": 5, "clip_len": 9}),
        pytest.param(SMALL, "swap", {}, marks=pytest.mark.heavy),
        (LARGE, "offload", {"vae_dtype": "bfloat16"}),
    ],
    ids=["guided", "replace", "swap", "offload"],
)
def test_everything_is_computed_on_the_device(size, placement, settings, lora, monkeypatch):
    with fake_cuda(monkeypatch) as counts:
        models = make_models(placement, settings.get("vae_dtype", "float32"))
        with Watch() as watch:
            animator = animate(models, size, (lora,) if placement == "resident" else (), **settings)
        assert not watch.elsewhere
        assert not watch.slow_convolutions
        assert all(len(dtypes) == 1 for _, dtypes in watch.products)
        assert watch.products["addmm", ("bfloat16",)] > 2 * watch.products["addmm", ("float32",)]
        weights = sum(one.nbytes for module in animator.transformer.trunk.order() for one in module.parameters())
        if placement == "offload":  # each weight once in pinned memory, with little padding
            assert weights <= counts.pinned < 1.001 * weights
            assert all(one.device == CUDA for one in animator.transformer.parameters())
        elif placement == "swap":
            whole = sum(one.nbytes for one in animator.transformer.parameters())
            assert whole - 2**20 < counts.pinned < 1.001 * whole
        else:
            assert counts.pinned == 0
        assert watch.to_host == 4 * 3 * settings.get("refert_num", 1) * size[0] * size[1]  # the guide


@pytest.fixture
def functions(monkeypatch):
    """The functions that are compiled, without Inductor, which needs a GPU. Dynamo counts their graphs."""
    compiled_ones = {}

    def compile_once(function):
        return compiled_ones.setdefault(function, torch.compile(function, backend="eager"))

    monkeypatch.setattr(compiled, "_compiled", compile_once)
    torch._dynamo.reset()
    counters.clear()
    return compiled_ones


@pytest.mark.parametrize("placement", ["resident", pytest.param("swap", marks=pytest.mark.heavy)])
def test_blocks_compile_once_for_all_segments_and_sizes(placement, functions, monkeypatch):
    with fake_cuda(monkeypatch):
        models = make_models(placement)
        for size in (SMALL, LARGE):
            compilation = animate(models, size, compile="on").compilation
            assert (compilation.compiled, compilation.error) == (True, None)
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == len(functions) == 2


@pytest.mark.parametrize("cache", ["inputs", pytest.param("host", marks=pytest.mark.heavy)])
def test_the_second_family_runs_on_the_device_and_compiles_once(cache, functions, monkeypatch):
    """With guidance, and a driving video of other proportions."""
    values = {"clip_len": 9, "sampling_steps": 1, "attention": "native", "driving_cache": cache}
    with fake_cuda(monkeypatch):
        models = make_models(kind=FakeModels2)
        for size, other, compiling in ((SMALL, LARGE, "off"), (SMALL, LARGE, "on"), (LARGE, SMALL, "on")):
            settings = GenerateSettings(model="animate-2", variant="base", compile=compiling, **values)
            animator, guide = animator_2.Animator(models, settings, REFERENCE, *size, (), 2, 1280 * 720), None
            segment = animator_2.SegmentInput(np.zeros((9, *other, 3), np.uint8))
            watch = Watch()
            with watch if compiling == "off" else nullcontext():  # nothing is compiled while operations are watched
                for _ in range(2):
                    conditions = animator.condition(segment, guide)
                    video = animator.animate(conditions, lambda done: None)
                    assert (video.device, video.dtype, video.shape) == (CUDA, torch.float32, (3, 9, *size))
                    guide = video[:, -1:].cpu()
            assert watch.products or compiling == "on"
            assert not watch.elsewhere
            assert not watch.slow_convolutions
            assert (animator.compilation.compiled, animator.compilation.error) == (compiling == "on", None)
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == len(functions) == 2
