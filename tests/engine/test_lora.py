"""LoRA files as the tools for Wan write them."""

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.random_snapshot import Widths, transformer_shapes
from wan_orchestration.engine.lora import Lora, fuse
from wan_orchestration.engine.models import Models
from wan_orchestration.errors import BadInput
from wan_orchestration.families.animate.family import RELIGHTING_LORA
from wan_orchestration.families.animate_2.transformer import Animate2Transformer
from wan_orchestration.weights.snapshot import open_snapshot

CPU = torch.device("cpu")
MINI = Path(__file__).parents[2] / "data" / "models" / "wan-animate-mini"
# Modules by their original and their diffusers name.
MODULES = {
    "blocks.0.self_attn.q": "blocks.0.attn1.to_q",
    "blocks.1.cross_attn.o": "blocks.1.attn2.to_out.0",
    "blocks.2.cross_attn.k_img": "blocks.2.attn2.add_k_proj",
    "blocks.3.ffn.0": "blocks.3.ffn.net.0.proj",
    "time_projection.1": "condition_embedder.time_proj",
    "face_adapter.fuser_blocks.0.linear2": "face_adapter.0.to_out",
    "head.head": "proj_out",
    "patch_embedding": "patch_embedding",
}
DIALECTS = {
    "original": ("", "original", "lora_down.weight", "lora_up.weight"),
    "ComfyUI": ("diffusion_model.", "original", "lora_A.weight", "lora_B.weight"),
    "peft": ("base_model.model.", "original", "lora_A.default.weight", "lora_B.default.weight"),
    "diffusers": ("transformer.", "diffusers", "lora_A.weight", "lora_B.weight"),
    "unet": ("unet.", "diffusers", "lora_A.style.weight", "lora_B.style.weight"),
    "kohya": ("lora_unet_", "original", "lora_down.weight", "lora_up.weight"),
    "Wan-Fun": ("lora_unet__", "original", "lora_down.weight", "lora_up.weight"),
    "kohya with diffusers names": ("lora_unet_", "diffusers", "lora_down.weight", "lora_up.weight"),
}


@pytest.fixture(scope="module")
def tiny(tiny_snapshot):
    return Models(open_snapshot(tiny_snapshot), CPU, torch.float32).transformer()


@pytest.fixture
def model(tiny):
    return copy.deepcopy(tiny)


def weight(model, module):
    return model.get_submodule(module).weight


def fused(model, file, tensors, strength=1.0, metadata=None):
    save_file(tensors, file, metadata)
    return fuse(model, Lora(file, strength))


def pair(weight, dtype=torch.float32, rank=4):
    """The two matrices of a LoRA, with numbers that every dtype holds exactly."""
    generator = torch.Generator().manual_seed(weight.numel())

    def draw(*shape):
        return (torch.randint(-2, 3, shape, generator=generator) / 2).to(dtype)

    return draw(rank, *weight.shape[1:]), draw(weight.shape[0], rank, *[1] * (weight.dim() - 2))


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_dialect_adds_the_same(tiny, model, tmp_path, dialect):
    prefix, naming, down, up = DIALECTS[dialect]
    tensors, expected = {}, {}
    for original, diffusers in MODULES.items():
        name = original if naming == "original" else diffusers
        key = prefix + (name.replace(".", "_") if prefix.startswith("lora_") else name)
        before = weight(tiny, diffusers)
        a, b = pair(before)
        tensors |= {f"{key}.{down}": a, f"{key}.{up}": b, f"{key}.alpha": torch.tensor(2.0)}
        expected[f"{diffusers}.weight"] = before + 0.5 * 2 / 4 * (b.flatten(1) @ a.flatten(1)).reshape(before.shape)
    assert fused(model, tmp_path / "l.safetensors", tensors, 0.5) is None
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in (tiny.state_dict() | expected).items())


@pytest.mark.parametrize("prefix", ["diffusion_model.", "lora_unet_"])
def test_every_weight_can_have_a_difference(tiny, model, tmp_path, prefix):
    tensors = {}
    for name, shape in transformer_shapes(Widths(layers=5)):
        module, _, last = name.rpartition(".")
        module = name if last not in ("weight", "bias") else module
        module = module.replace(".", "_") if prefix == "lora_unet_" else module
        if last != "kernel":
            tensors[f"{prefix}{module}.{'diff_b' if last == 'bias' else 'diff'}"] = torch.ones(shape)
    assert fused(model, tmp_path / "l.safetensors", tensors, 2) is None
    before = dict(tiny.named_parameters())
    assert [name for name, after in model.named_parameters() if not torch.equal(after, before[name] + 2)] == []


def test_parts_that_are_not_matrices(tiny, model, tmp_path):
    dim = tiny.scale_shift_table.shape[-1]
    key = "diffusion_model.blocks.0"
    tensors = {
        f"{key}.diff_m": torch.full((1, 6, dim), 0.5),
        f"{key}.self_attn.norm_q.diff": torch.full((dim,), 0.25),
        f"{key}.self_attn.q.lora_A.weight": torch.ones(4, dim),
        f"{key}.self_attn.q.lora_B.weight": torch.ones(dim, 4),
        f"{key}.self_attn.q.lora_B.bias": torch.ones(dim),
        f"{key}.self_attn.q.diff": torch.ones(dim, dim),
        f"{key}.self_attn.q.diff_b": torch.ones(dim),
        f"{key}.self_attn.q.alpha": torch.tensor([2.0]),
    }
    assert fused(model, tmp_path / "l.safetensors", tensors, 3) is None
    block, before = model.blocks[0], tiny.blocks[0]
    assert torch.equal(block.scale_shift_table, before.scale_shift_table + 1.5)
    assert torch.equal(block.attn1.norm_q.weight, before.attn1.norm_q.weight + 0.75)
    assert torch.allclose(block.attn1.to_q.weight, before.attn1.to_q.weight + 3 * 2 / 4 * 4 + 3)
    assert torch.allclose(block.attn1.to_q.bias, before.attn1.to_q.bias + 3 * 2 / 4 + 3)


def test_fused_key_and_value(tiny, model, tmp_path):
    key, dim = "face_adapter.fuser_blocks.0.linear1_kv", tiny.scale_shift_table.shape[-1]
    a, b = pair(torch.empty(2 * dim, dim))
    assert fused(model, tmp_path / "l.safetensors", {f"{key}.lora_A.weight": a, f"{key}.lora_B.weight": b}) is None
    adapter, before = model.face_adapter[0], tiny.face_adapter[0]
    assert torch.equal(adapter.to_k.weight, before.to_k.weight + b[:dim] @ a)
    assert torch.equal(adapter.to_v.weight, before.to_v.weight + b[dim:] @ a)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_narrow_numbers(tiny, tmp_path, dtype):
    model = copy.deepcopy(tiny).to(torch.bfloat16)
    before = weight(model, "blocks.0.attn1.to_q").float()
    a, b = pair(before, dtype)
    key = "blocks.0.self_attn.q"
    tensors = {f"{key}.lora_A.weight": a, f"{key}.lora_B.weight": b, f"{key}.alpha": torch.tensor(1.5).to(dtype)}
    assert fused(model, tmp_path / "l.safetensors", tensors) is None
    expected = before + 1.5 / 4 * (b.float() @ a.float())
    assert torch.equal(weight(model, "blocks.0.attn1.to_q"), expected.to(torch.bfloat16))


@pytest.mark.parametrize("place", ["metadata", "beside"])
@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({"lora_alpha": 2}, 2 / 4),
        ({"lora_alpha": 2, "use_rslora": True}, 2 / 2),
        ({"lora_alpha": 2, "alpha_pattern": {"attn1.to_q": 12}}, 12 / 4),
    ],
)
def test_alpha_of_a_peft_configuration(tiny, model, tmp_path, config, scale, place):
    before = weight(tiny, "blocks.0.attn1.to_q")
    a, b = pair(before)
    key, metadata = "transformer.blocks.0.attn1.to_q", None
    if place == "metadata":
        metadata = {"lora_adapter_metadata": json.dumps({f"transformer.{name}": x for name, x in config.items()})}
    else:
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    file = tmp_path / "adapter_model.safetensors"
    fused(model, file, {f"{key}.lora_A.weight": a, f"{key}.lora_B.weight": b}, metadata=metadata)
    assert torch.allclose(weight(model, "blocks.0.attn1.to_q"), before + scale * b @ a)


def test_tensors_that_do_not_fit_are_named_once(tiny, model, tmp_path):
    dim = tiny.scale_shift_table.shape[-1]
    tensors = {f"diffusion_model.blocks.{i}.self_attn.norm_q.diff": torch.ones(dim) for i in range(5)}
    tensors |= {f"diffusion_model.blocks.{i}.diff_m": torch.ones(1, 6, 8) for i in range(3)}
    tensors |= {f"lora_te_layers_0_q.lora_{side}.weight": torch.ones(8, 8) for side in ("up", "down")}
    text = fused(model, tmp_path / "style.safetensors", tensors)
    assert text == (
        "LoRA style.safetensors: left out 5 of its 10 tensors: "
        f"diffusion_model.blocks.*.diff_m (3; its shape is (1, 6, 8), but the transformer's weight has (1, 6, {dim})), "
        "lora_te_layers_0_q.lora_down.weight (1; there is no such weight), "
        "lora_te_layers_0_q.lora_up.weight (1; there is no such weight)"
    )
    assert torch.equal(model.blocks[4].attn1.norm_q.weight, tiny.blocks[4].attn1.norm_q.weight + 1)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            {"q.lora_A.weight": (4, 256), "q.lora_B.weight": (128, 4)},
            r"1 of its 1 modules.*q\.lora_A.*\(128, 4\) x \(4, 256\).*\(128, 128\); the file was made for another",
        ),
        ({"x.lora_A.weight": (4, 8), "x.lora_B.weight": (8, 4)}, "1 of its 1 modules.*there is no such weight"),
        ({"q.weight": (128, 128)}, r"q\.weight.*it is not part of a LoRA"),
        ({"q.lora_A.weight": (4, 128)}, "one of its two LoRA matrices"),
        ({"q.lora_A.weight": (4, 128), "q.lora_B.weight": (128, 4), "q.dora_scale": (1, 128)}, "belongs to DoRA"),
        ({"q.hada_w1_a": (4, 128)}, "belongs to LoHa"),
        ({"q.lokr_w1": (4, 128)}, "belongs to LoKr"),
        ({}, "holds no tensors"),
    ],
)
def test_a_file_that_cannot_be_used(tiny, model, tmp_path, tensors, message):
    made = {f"diffusion_model.blocks.0.self_attn.{key}": torch.ones(shape) for key, shape in tensors.items()}
    with pytest.raises(BadInput, match=rf"other\.safetensors.*{message}"):
        fused(model, tmp_path / "other.safetensors", made)
    assert all(torch.equal(a, b) for a, b in zip(tiny.parameters(), model.parameters()))


@pytest.mark.parametrize("name", ["l.safetensors", "l.ckpt"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "a Git LFS pointer"),
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", "an HTML page"),
        (b'{"error": "Repository not found"}', "a JSON text"),
        (b"", "an empty file"),
    ],
)
def test_a_file_that_is_not_the_lora_is_described(model, tmp_path, name, content, words):
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(BadInput, match=rf"{name}.*{words}"):
        fuse(model, Lora(file))


def test_files_of_other_tools(shared):
    snapshot = open_snapshot(MINI)
    model = Models(snapshot, CPU, torch.float32).transformer()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    folder = shared / "field" / "lora_dialects"
    after, notices = {}, {}
    for name in ("plain", "kohya_keys", "diff_m", "lightx2v_keys"):
        notices[name] = fuse(model, Lora(folder / f"{name}.safetensors", 0.5))
        after[name] = {key: value.clone() for key, value in model.state_dict().items()}
        model.load_state_dict(before)

    tensors = load_file(folder / "plain.safetensors")
    expected = dict(before)
    for original, name in {
        "self_attn.q": "attn1.to_q",
        "cross_attn.k": "attn2.to_k",
        "ffn.0": "ffn.net.0.proj",
    }.items():
        a, b = (tensors[f"diffusion_model.blocks.0.{original}.lora_{side}.weight"] for side in "AB")
        expected[f"blocks.0.{name}.weight"] = expected[f"blocks.0.{name}.weight"] + 0.5 * b @ a
    for name in ("plain", "kohya_keys", "diff_m"):
        assert all(torch.equal(after[name][key], value) for key, value in expected.items()), name
    assert notices["plain"] is notices["kohya_keys"] is notices["lightx2v_keys"] is None
    assert "left out 1 of its 7 tensors: diffusion_model.blocks.*.diff_m" in notices["diff_m"]

    tensors = load_file(folder / "lightx2v_keys.safetensors")
    for key, name in {"self_attn.q.diff_b": "attn1.to_q.bias", "self_attn.norm_q.diff": "attn1.norm_q.weight"}.items():
        added = after["lightx2v_keys"][f"blocks.0.{name}"] - before[f"blocks.0.{name}"]
        assert torch.allclose(added, 0.5 * tensors[f"diffusion_model.blocks.0.{key}"], atol=1e-6)


def test_models_warn_each_time_of_tensors_left_out(tiny_snapshot, tmp_path, caplog):
    file = tmp_path / "l.safetensors"
    save_file({"blocks.0.self_attn.q.diff_b": torch.ones(128), "blocks.0.diff_m": torch.ones(1, 6, 8)}, file)
    models = Models(open_snapshot(tiny_snapshot), CPU, torch.float32)
    for _ in range(2):
        models.transformer((Lora(file),))
    assert ["left out 1 of its 2" in message for message in caplog.messages] == [True, True]


def test_the_relighting_lora_of_a_snapshot(tiny_snapshot):
    file = tiny_snapshot / RELIGHTING_LORA
    down, up = (
        torch.load(file, weights_only=True)["state_dict"][f"blocks.0.ffn.0.lora_{side}.weight"].float() for side in "AB"
    )
    models = Models(open_snapshot(tiny_snapshot), CPU, torch.float32)
    before = models.transformer().get_parameter("blocks.0.ffn.net.0.proj.weight").clone()
    after = models.transformer((Lora(file, 0.5),)).get_parameter("blocks.0.ffn.net.0.proj.weight")
    assert torch.allclose(after, before + 0.5 * up @ down, atol=1e-6)
    assert torch.equal(models.transformer(()).get_parameter("blocks.0.ffn.net.0.proj.weight"), before)


def test_argument(tmp_path):
    file = tmp_path / "a.safetensors"
    file.touch()
    assert Lora.parse(f"{file}:0.8") == Lora(file, 0.8)
    assert Lora.parse(str(file)) == Lora(file, 1.0)
    with pytest.raises(BadInput, match="strong"):
        Lora.parse(f"{file}:strong")
    with pytest.raises(BadInput, match="no file"):
        Lora.parse(str(tmp_path / "b.safetensors"))


@pytest.mark.parametrize(
    "query, output",
    [
        ("blocks.1.block.self_attn.q", "blocks.0.block.cross_attn.v_img"),
        ("transformer.blocks.1.self_attn.to_q", "transformer.blocks.0.cross_attn.add_v_proj"),
        ("transformer.blocks.1.attn1.to_q", "transformer.blocks.0.attn2.add_v_proj"),
        ("lora_unet_blocks_1_block_self_attn_q", "lora_unet_blocks_0_block_cross_attn_v_img"),
    ],
)
def test_both_spellings_of_the_second_family(query, output, tmp_path):
    torch.manual_seed(0)
    model = Animate2Transformer(
        num_attention_heads=2, attention_head_dim=12, in_channels=36, text_dim=8, freq_dim=16, ffn_dim=32, num_layers=2,
        image_dim=8, added_kv_proj_dim=24,
    )  # fmt: skip
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    for name, change in (("blocks.1.attn1.to_q", 0.5), ("blocks.0.attn2.add_v_proj", 1.5)):
        expected[f"{name}.weight"] += change
    tensors = {}
    for name, change in ((query, 0.5), (output, 1.5)):
        tensors |= {
            f"{name}.lora_down.weight": torch.ones(1, 24),
            f"{name}.lora_up.weight": torch.full((24, 1), change),
        }
    save_file(tensors, tmp_path / "lora.safetensors")
    assert fuse(model, Lora(tmp_path / "lora.safetensors")) is None
    for name, value in model.state_dict().items():
        assert torch.equal(value, expected[name]), name
