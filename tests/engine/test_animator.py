"""The ways to compute a segment, compared with the plain one."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from wan_orchestration.engine.models import Models
from wan_orchestration.engine.transformer import blocks
from wan_orchestration.families.animate.animator import Animator, SegmentInput
from wan_orchestration.settings.generate import GenerateSettings
from wan_orchestration.weights.snapshot import open_snapshot

random = np.random.default_rng(0)
SEGMENT = SegmentInput(
    pose=random.integers(0, 256, (5, 32, 48, 3), np.uint8), face=random.integers(0, 256, (5, 512, 512, 3), np.uint8)
)
REFERENCE = random.integers(0, 256, (40, 40, 3), np.uint8)


@pytest.fixture(scope="module")
def animate(tiny_snapshot):
    """Frames of a segment, by settings and placement."""
    snapshot = open_snapshot(tiny_snapshot)
    kept = {}

    def run(placement="resident", quantization="off", vae_dtype="float32", segment=SEGMENT, **settings):
        how = placement, quantization, vae_dtype
        if how not in kept:
            options = {"placement": placement, "quantization": quantization, "vae_dtype": getattr(torch, vae_dtype)}
            kept[how] = Models(snapshot, torch.device("cpu"), torch.float32, **options)
        values = {"clip_len": 5, "sampling_steps": 2, "device": "cpu", **settings}
        animator = Animator(kept[how], GenerateSettings(**values), REFERENCE, 32, 48, ())
        run.transformer = animator.transformer
        return animator.animate(animator.condition(segment, None), lambda done: None)

    return run


@pytest.fixture(scope="module")
def plain(animate):
    return animate()


@pytest.mark.parametrize("placement", ["swap", "offload", "tiled"])
def test_placement_changes_nothing(placement, animate, plain, monkeypatch):
    """Slices do not either. The picture is too small for more than one band; see test_bands.py."""
    monkeypatch.setattr(blocks, "SLICE", 5)
    for _ in range(2):
        assert torch.allclose(animate(placement), plain, atol=1e-5)


@pytest.mark.parametrize("placement", ["resident", "swap", "offload"])
def test_quantised_blocks_give_a_similar_video(placement, animate, plain):
    pytest.importorskip("torchao")
    for _ in range(2):
        made = animate(placement, quantization="fp8")
        assert not torch.equal(made, plain)
        assert (made - plain).abs().mean() < 0.02
    weight = animate.transformer.blocks[0].attn1.to_q.weight
    assert weight.qdata.dtype == torch.float8_e4m3fn
    assert animate.transformer.patch_embedding.weight.dtype == torch.float32


def test_a_vae_in_bfloat16_gives_a_similar_video(animate, plain):
    made = animate(vae_dtype="bfloat16")
    assert made.dtype == torch.float32 and not torch.equal(made, plain)
    assert (made - plain).abs().mean() < 0.02


def test_a_step_cache_skips_blocks_and_is_reset_for_each_segment(animate, plain):
    calls = []
    animate(sampling_steps=9)
    handle = animate.transformer.blocks[0].attn1.to_q.register_forward_hook(lambda *_: calls.append(1))
    try:
        every = animate(sampling_steps=9)
        assert len(calls) == 9
        calls.clear()
        some = animate(sampling_steps=9, step_cache=3)
        assert len(calls) == 5  # the first three, then one in three
        assert torch.isfinite(some).all()
        assert not torch.equal(some, every)
        calls.clear()
        assert torch.equal(animate(sampling_steps=9, step_cache=3), some)
        assert len(calls) == 5
    finally:
        handle.remove()
    assert torch.equal(animate(), plain)


@pytest.mark.parametrize("placement", ["resident", "offload"])
@pytest.mark.parametrize("name", ["pose", "face"])
def test_a_strength_scales_the_influence_of_a_clip(name, placement, animate, plain):
    """In both branches of guidance: at 0, only the other clip decides."""
    other = replace(SEGMENT, **{name: 255 - getattr(SEGMENT, name)})

    def made(strength, segment=SEGMENT):
        return animate(placement, segment=segment, guide_scale=2.0, **{f"{name}_strength": strength})

    assert torch.equal(animate(placement, **{f"{name}_strength": 1.0}), animate(placement))
    assert not torch.equal(made(1), made(1, other))
    assert torch.equal(made(0), made(0, other))
    assert not torch.equal(made(1), made(2))


@pytest.mark.heavy
@pytest.mark.parametrize("placement", ["resident", "swap", "offload"])
def test_compiled_blocks_agree(placement, animate, plain):
    """Needs a C++ compiler and a minute. All blocks share the graphs of their two parts."""
    counters["stats"].clear()
    assert torch.allclose(animate(placement, compile="on"), plain, atol=1e-4)
    assert counters["stats"]["unique_graphs"] <= 4
    assert torch.equal(animate(), plain)
