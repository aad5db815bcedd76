"""What the engine would do on a GPU: every operation's device, dtype and layout, at the 14B model's widths."""

import numpy as np
import pytest
import torch
from fake_cuda import CUDA, FakeModels, Watch, fake_cuda

from wan_orchestration.animate.animator import Animator, ClipInput
from wan_orchestration.settings import GenerateSettings

REFERENCE = np.zeros((600, 500, 3), np.uint8)
SIZES = [(480, 832), (720, 1280)]


def clip_input(height, width, frames, replace=False):
    def frame(*size):
        return np.broadcast_to(np.zeros((1, *size, 3), np.uint8), (frames, *size, 3)).copy()

    more = {"background": frame(height, width), "mask": frame(height, width)} if replace else {}
    return ClipInput(pose=frame(height, width), face=frame(512, 512), **more)


class KnownPrompts:
    """Stands in for kept embeddings of the prompts, which the tokenizer's text decides."""

    def get(self, key, compute):
        return torch.empty(1, 20, 4096) if key.startswith("prompt") else compute().cpu()


def animate(monkeypatch, size, placement="resident", clips=2, compile="off", **settings):
    """Make clips; returns what was seen."""
    with fake_cuda(monkeypatch) as counts:
        vae_dtype = getattr(torch, settings.get("vae_dtype", "float32"))
        models = FakeModels(None, CUDA, torch.bfloat16, placement=placement, vae_dtype=vae_dtype)
        models.cache = KnownPrompts()
        values = {"attention": "native", "compile": compile, "sampling_steps": 1, **settings}
        settings = GenerateSettings(**values)
        with Watch() as watch:
            animator = Animator(models, settings, REFERENCE, *size, (), clips)
            guide = None
            for _ in range(clips):
                given = clip_input(*size, settings.clip_len, settings.mode == "replace")
                video = animator.animate(animator.condition(given, guide), lambda done: None)
                guide = video[:, -settings.refert_num :].cpu()
        assert (video.device, video.dtype, video.shape) == (CUDA, torch.float32, (3, settings.clip_len, *size))
        watch.counts, watch.models, watch.compilation = counts, models, animator.compilation
        return watch


@pytest.mark.parametrize(
    "size, placement, settings",
    [
        (SIZES[0], "resident", {"guide_scale": 2.0}),
        (SIZES[1], "resident", {"mode": "replace", "refert_num": 5}),
        (SIZES[0], "swap", {}),
        (SIZES[1], "offload", {"vae_dtype": "bfloat16"}),
        (SIZES[1], "tiled", {}),
    ],
    ids=["resident", "replace", "swap", "offload", "tiled"],
)
def test_all_is_computed_on_the_device(size, placement, settings, monkeypatch):
    watch = animate(monkeypatch, size, placement, clip_len=9, **settings)
    assert not watch.elsewhere
    print(watch.products, watch.slow_convolutions[:5], len(watch.slow_convolutions), watch.to_host, watch.counts)
