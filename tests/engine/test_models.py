import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks import random_snapshot
from wan_orchestration.engine.models import Models
from wan_orchestration.errors import BadInput
from wan_orchestration.families.animate.family import IMAGE_ENCODER, TEXT_ENCODER, VAE
from wan_orchestration.weights.snapshot import open_snapshot

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "snapshot"
    random_snapshot.write(folder, random_snapshot.Widths(layers=5))
    return folder


@pytest.fixture
def copy(source, tmp_path):
    return shutil.copytree(source, tmp_path / "snapshot")


def open_models(folder, dtype=torch.float32):
    return Models(open_snapshot(folder), CPU, dtype)


def shard(folder, number=1):
    return folder / f"diffusion_pytorch_model-{number:05d}-of-00002.safetensors"


def test_same_seed_same_files(source, tmp_path):
    random_snapshot.write(tmp_path / "again", random_snapshot.Widths(layers=5))
    assert shard(source).read_bytes() == shard(tmp_path / "again").read_bytes()
    assert (
        torch.load(source / VAE, weights_only=True)["conv1.weight"]
        .eq(torch.load(tmp_path / "again" / VAE, weights_only=True)["conv1.weight"])
        .all()
    )


@pytest.mark.parametrize("widths", [{}, {"dim": 96, "heads": 3, "vae": 16, "text": 32, "text_heads": 2, "clip": 80}])
def test_widths_come_from_the_files(tmp_path, widths):
    random_snapshot.write(tmp_path / "s", random_snapshot.Widths(layers=5, **widths), shards=3)
    models = open_models(tmp_path / "s")
    expected = random_snapshot.Widths(layers=5, **widths)
    assert models.transformer().config["num_attention_heads"] == expected.heads
    assert models.vae().config["base_dim"] == expected.vae
    assert models.text_encoder().config.d_model == expected.text
    assert models.image_encoder().config.num_attention_heads == expected.clip // 80
    assert not any(parameter.is_meta for parameter in models.transformer().parameters())


def test_layouts_hold_the_same_weights(source, tmp_path, diffusers_snapshot):
    first, second = open_models(source), open_models(diffusers_snapshot(source, tmp_path / "d"))
    for name in ("transformer", "vae", "text_encoder", "image_encoder"):
        ours, theirs = (dict(getattr(models, name)().named_parameters()) for models in (first, second))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
        buffers = dict(getattr(second, name)().named_buffers())
        assert all(torch.equal(value, buffers[key]) for key, value in getattr(first, name)().named_buffers())


def test_bfloat16_keeps_some_weights_in_float32(source):
    transformer = open_models(source, torch.bfloat16).transformer()
    assert transformer.get_parameter("blocks.0.attn1.to_q.weight").dtype == torch.bfloat16
    assert transformer.scale_shift_table.dtype == torch.float32
    assert transformer.condition_embedder.time_embedder.linear_1.weight.dtype == torch.float32


def test_missing_tensor(copy):
    weights = load_file(shard(copy))
    weights.pop("blocks.0.ffn.0.weight")
    save_file(weights, shard(copy))
    with pytest.raises(BadInput, match=r"1 missing tensor.*blocks\.0\.ffn\.net\.0\.proj\.weight"):
        open_models(copy).transformer()


def test_unexpected_tensor(copy):
    weights = load_file(shard(copy))
    save_file(weights | {"blocks.0.extra.weight": torch.zeros(2)}, shard(copy))
    with pytest.raises(BadInput, match=r"1 unexpected tensor.*blocks\.0\.extra\.weight"):
        open_models(copy).transformer()


def test_wrong_width(copy):
    config = json.loads((copy / "config.json").read_text()) | {"ffn_dim": 512}
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadInput, match=r"blocks\.0\.ffn\.0\.bias.*\(256,\).*\(512,\)"):
        open_models(copy).transformer()


def test_missing_key_in_config(copy):
    config = json.loads((copy / "config.json").read_text())
    config.pop("num_heads")
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadInput, match="num_heads"):
        open_models(copy).transformer()


@pytest.mark.parametrize("name, load", [(VAE, "vae"), (TEXT_ENCODER, "text_encoder"), (IMAGE_ENCODER, "image_encoder")])
def test_damaged_weight_file(copy, name, load):
    (copy / name).write_bytes(b"not a pickle")
    with pytest.raises(BadInput, match=name):
        getattr(open_models(copy), load)()


def test_code_in_a_pickle_does_not_run(copy, tmp_path):
    class Attack:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"weight": Attack()}, copy / VAE)
    with pytest.raises(BadInput, match=VAE):
        open_models(copy).vae()
    assert not (tmp_path / "ran").exists()


def test_diffusers_layout_is_strict(source, tmp_path, diffusers_snapshot):
    folder = diffusers_snapshot(source, tmp_path / "d")
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["extra"] = weights.pop("quant_conv.weight")
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(BadInput, match=r"vae.*unexpected tensor.*extra"):
        open_models(folder).vae()


def test_a_text_encoder_that_does_not_fit_replaces_the_transformer(tiny_snapshot, monkeypatch):
    for free, stays in ((10**12, True), (1, False)):
        models = Models(open_snapshot(tiny_snapshot), torch.device("cpu"), torch.float32)
        transformer = models.transformer()
        monkeypatch.setattr("wan_orchestration.engine.models.free_memory", lambda device, free=free: free)
        models.text_encoder()
        assert (models.transformer() is transformer) == stays
