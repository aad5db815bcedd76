"""Models that are changed between jobs, against models that are loaded anew."""

import weakref

import pytest
import torch
from lora_files import MOTION, STYLE, write_lora

from benchmarks import random_snapshot
from wan_orchestration.engine import fused_loras
from wan_orchestration.engine.layouts import fill
from wan_orchestration.engine.lora import Lora
from wan_orchestration.engine.models import Models
from wan_orchestration.errors import BadInput
from wan_orchestration.weights.snapshot import open_snapshot

CPU = torch.device("cpu")


@pytest.fixture
def reads(monkeypatch):
    """Names of the tensors that are read from safetensors files."""
    names = []

    def counted(*arguments, read=fill.read_safetensors):
        for name, tensor in read(*arguments):
            names.append(name)
            yield name, tensor

    monkeypatch.setattr(fill, "read_safetensors", counted)
    return names


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def alike(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("layout", ["original", "diffusers"])
def test_only_weights_that_a_lora_changed_are_read_again(
    layout, tiny_snapshot, diffusers_snapshot, style, motion, reads, tmp_path
):
    folder = tiny_snapshot if layout == "original" else diffusers_snapshot(tiny_snapshot, tmp_path / "d")
    snapshot = open_snapshot(folder)

    def fresh(*loras):
        return weights(Models(snapshot, CPU, torch.bfloat16).transformer(loras))

    expected = {loras: fresh(*loras) for loras in [(), (Lora(style),), (Lora(motion, 0.5),)]}
    models = Models(snapshot, CPU, torch.bfloat16)
    transformer = models.transformer((Lora(style),))
    for loras, read in [
        ((Lora(motion, 0.5),), STYLE),
        ((), MOTION),
        ((), set()),
        ((Lora(style),), set()),
        ((), STYLE),
    ]:
        reads.clear()
        assert models.transformer(loras) is transformer
        assert alike(weights(transformer), expected[loras])
        if layout == "original":
            assert sorted(reads) == sorted(f"{name}.weight" for name in read)
        else:
            assert len(reads) == len(read) + ("face_adapter.fuser_blocks.0.linear1_kv" in read)


def test_a_lora_that_changed_on_disk_is_fused_again(tiny_snapshot, style):
    models = Models(open_snapshot(tiny_snapshot), CPU, torch.float32)
    before = weights(models.transformer((Lora(style),)))
    write_lora(style, STYLE, seed=7)
    after = weights(models.transformer((Lora(style),)))
    assert not alike(before, after)
    assert alike(after, weights(Models(open_snapshot(tiny_snapshot), CPU, torch.float32).transformer((Lora(style),))))


def test_a_lora_that_cannot_be_used_leaves_the_transformer_as_it_is(tiny_snapshot, style, tmp_path):
    models = Models(open_snapshot(tiny_snapshot), CPU, torch.float32)
    transformer = models.transformer((Lora(style),))
    before = weights(transformer)
    (tmp_path / "bad.safetensors").write_bytes(b"")
    with pytest.raises(BadInput, match=r"bad\.safetensors"):
        models.transformer((Lora(style, 0.5), Lora(tmp_path / "bad.safetensors")))
    assert alike(weights(transformer), before)
    assert models.transformer((Lora(style),)) is transformer


@pytest.mark.parametrize("placement", ["resident", "offload"])
def test_a_transformer_that_is_changed_only_in_part_is_dropped(placement, tiny_snapshot, style, motion, monkeypatch):
    models = Models(open_snapshot(tiny_snapshot), CPU, torch.float32, placement=placement)
    transformer = weakref.ref(models.transformer((Lora(style),)))

    def fail(*arguments):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(fused_loras, "add", fail)
        with pytest.raises(MemoryError):
            models.transformer((Lora(motion),))
    assert transformer() is None
    fresh = Models(open_snapshot(tiny_snapshot), CPU, torch.float32).transformer((Lora(motion),))
    if placement == "resident":
        assert alike(weights(models.transformer((Lora(motion),))), weights(fresh))


def test_only_models_that_differ_are_dropped(tiny_snapshot, tmp_path):
    random_snapshot.write(tmp_path / "other", random_snapshot.Widths(layers=5, vae=8), seed=1)
    other = open_snapshot(tmp_path / "other")
    same = {"device": CPU, "quantization": "off", "tf32": False}
    how = {"dtype": torch.float32, "placement": "resident", "vae_dtype": torch.float32}
    names = ("transformer", "text_encoder", "vae", "image_encoder")
    models = Models(open_snapshot(tiny_snapshot), CPU, torch.float32)
    for change, dropped in [
        ({}, set()),
        ({"vae_dtype": torch.bfloat16}, {"vae"}),
        ({"dtype": torch.bfloat16}, {"transformer", "text_encoder"}),
        ({"placement": "tiled"}, set()),
        ({"placement": "swap"}, set()),
        ({"snapshot": other}, set(names)),
    ]:
        before = {name: weakref.ref(getattr(models, name)()) for name in names}
        how |= change
        models.change(**{"snapshot": open_snapshot(tiny_snapshot)} | how | same)
        assert {name for name, model in before.items() if model() is None} == dropped, change
