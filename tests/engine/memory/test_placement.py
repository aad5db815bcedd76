"""The memory that the engine is expected to take, against what its code takes."""

import weakref
from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from wan_orchestration.engine.memory import placement
from wan_orchestration.engine.memory.placement import Placement, SegmentShape, choose, placements
from wan_orchestration.engine.memory.sizes import Sizes, sizes
from wan_orchestration.engine.models import Models
from wan_orchestration.engine.vae.layers import use_own_layers
from wan_orchestration.engine.vae.model import AnimateVae
from wan_orchestration.families.animate.transformer import AnimateTransformer, FaceBranch
from wan_orchestration.families.animate_2.driving import Window
from wan_orchestration.families.animate_2.transformer import Animate2Transformer, InContextBranch
from wan_orchestration.settings.generate import GenerateSettings
from wan_orchestration.weights.snapshot import open_snapshot

GB = 10**9


class Peak(TorchDispatchMode):
    """Counts the bytes of the tensors that operations create, until they are freed."""

    def __init__(self, *before):
        super().__init__()
        self.known = {id(tensor.untyped_storage()): 0 for tensor in before}
        self.now = self.peak = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        output = function(*arguments, **(options or {}))
        for tensor in tree_iter(output):
            if isinstance(tensor, torch.Tensor) and id(storage := tensor.untyped_storage()) not in self.known:
                self.known[id(storage)] = storage.nbytes()
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._forget, id(storage))
        return output

    def _forget(self, key):
        self.now -= self.known.pop(key)


@pytest.fixture(params=["original", "diffusers"])
def snapshot(request, tiny_snapshot, diffusers_snapshot, tmp_path):
    if request.param == "original":
        return open_snapshot(tiny_snapshot)
    return open_snapshot(diffusers_snapshot(tiny_snapshot, tmp_path))


def test_sizes_are_those_of_the_loaded_models(snapshot):
    found = sizes(snapshot, torch.bfloat16)
    models = Models(snapshot, torch.device("cpu"), torch.bfloat16)

    def loaded(model):
        return sum(parameter.nbytes for parameter in model.parameters())

    transformer = models.transformer()
    assert found.transformer == loaded(transformer)
    assert found.block == max(map(loaded, transformer.blocks))
    assert found.outside == loaded(transformer) - loaded(transformer.blocks) - loaded(transformer.face_adapter)
    assert found.vae == loaded(models.vae())
    assert found.text_encoder == pytest.approx(loaded(models.text_encoder()), rel=0.3)  # some weights stay in float32
    assert (found.dim, found.layers, found.vae_width) == (128, 5, 4)


def test_quantised_weights_take_a_byte_each(snapshot):
    whole, quantized = sizes(snapshot, torch.bfloat16), sizes(snapshot, torch.bfloat16, quantized=True)
    assert quantized.loaded == whole.loaded == whole.transformer and quantized.outside == whole.outside
    assert quantized.block < 0.6 * whole.block and quantized.block_parameters == whole.block_parameters
    half = sizes(snapshot, torch.bfloat16, vae_dtype=torch.bfloat16)
    assert half.vae == whole.vae // 2 and half.vae_itemsize == 2


@pytest.mark.parametrize("in_slices", [False, True])
@pytest.mark.parametrize("height, width, dtype", [(480, 832, torch.bfloat16), (720, 1280, torch.bfloat16)])
def test_activations_of_a_denoising_step(height, width, dtype, in_slices):
    """At the widths of the 14B model, on tensors without data."""
    segment = SegmentShape(height, width, 77)
    slots, rows, columns = 21, height // 8, width // 8
    with FakeTensorMode(), torch.no_grad():
        torch.set_default_dtype(dtype)
        try:
            model = AnimateTransformer(added_kv_proj_dim=5120, num_layers=1, inject_face_latents_blocks=1)
        finally:
            torch.set_default_dtype(torch.float32)
        if in_slices:
            model.use_slices()
        model.prepare("native", None)
        pose = torch.empty(1, 5120, slots - 1, rows // 2, columns // 2, dtype=dtype)
        branch = FaceBranch(
            model.cross_keys(torch.empty(1, 769, 5120, dtype=dtype)), motion=torch.empty(1, slots, 5, 5120, dtype=dtype)
        )
        latents, y = torch.empty(1, 16, slots, rows, columns), torch.empty(1, 20, slots, rows, columns)
        with Peak(*model.parameters(), *model.buffers()) as memory:
            model.denoise(latents, torch.tensor([500]), y, pose, branch)
    maps = model.peak_maps[in_slices]
    expected = maps * segment.tokens * 5120 * dtype.itemsize
    assert expected == pytest.approx(memory.peak, rel=0.1)


@pytest.mark.parametrize("in_slices", [False, True])
@pytest.mark.parametrize("height, width", [(640, 800), pytest.param(720, 1280, marks=pytest.mark.heavy)])
def test_activations_of_the_second_family(height, width, in_slices):
    """Of a denoising step and of the driving pass at the widths of the 14B model, on tensors without data."""
    segment = SegmentShape(height, width, 81, driving=(height, width))
    slots, rows, columns, dtype = 22, height // 8, width // 8, torch.bfloat16
    with FakeTensorMode(), torch.no_grad():
        torch.set_default_dtype(dtype)
        try:
            model = Animate2Transformer(in_channels=36, image_dim=1280, added_kv_proj_dim=5120, num_layers=2)
        finally:
            torch.set_default_dtype(torch.float32)
        if in_slices:
            model.use_slices()
        model.prepare("native", None)
        branch = InContextBranch(model.cross_keys(torch.empty(1, 769, 5120, dtype=dtype)))
        driving = torch.empty(1, 16, slots - 1, rows, columns)
        latents, y = torch.empty(1, 16, slots, rows, columns), torch.empty(1, 20, slots, rows, columns)
        with Peak(*model.parameters(), *model.buffers()) as memory:
            model.read_driving(driving, branch, columns // 2)
        kept = memory.now
        model.driving.window = Window(rows * columns // 4, rows * columns // 4, empty=9, empty_driving=3)
        with Peak(*model.parameters(), *model.buffers(), *(x for one in model.driving._kept for x in one)) as step:
            model.denoise(latents, torch.tensor([500]), y, branch)
    maps = model.peak_maps[in_slices]
    one = segment.tokens * 5120 * dtype.itemsize
    assert memory.peak - kept <= 1.1 * maps * one
    assert maps * one == pytest.approx(step.peak, rel=0.1)


def test_what_is_kept_of_driving_frames_is_added():
    settings = GenerateSettings(model="animate-2", variant="distilled")
    for size, keys in (((640, 800), 34.4), ((720, 1280), 61.9)):
        segment = SegmentShape(*size, 81, driving=size)
        sizes = replace(BIG, vae_width=0)  # else decoding would take the most
        ways = placement.all_placements(sizes, segment, settings)
        bare = {way.name: way for way in placements(sizes, segment)}
        resident = {way.cache: way.vram - bare["resident"].vram for way in ways if way.name == "resident"}
        host = {way.cache: way.ram - bare["resident"].ram for way in ways if way.name == "resident"}
        assert resident["device"] / GB == host["host"] / GB == pytest.approx(keys, rel=0.01)
        assert 0.5 * keys < resident["inputs"] / GB < 0.6 * keys
        assert host["host-inputs"] / GB == pytest.approx(keys / 2, rel=0.01)
        assert max(resident["host"], resident["host-inputs"]) < 0.06 * keys * GB
        assert (host["device"], host["inputs"]) == (0, 0)


@pytest.mark.parametrize(
    "height, width, name",
    [
        (480, 832, "resident"),
        pytest.param(720, 1280, "resident", marks=pytest.mark.heavy),
        pytest.param(720, 1280, "offload", marks=pytest.mark.heavy),
        pytest.param(480, 832, "tiled", marks=pytest.mark.heavy),
    ],
)
def test_the_vae_takes_the_expected_memory(height, width, name, monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)  # its convolution needs real data
    with FakeTensorMode(), torch.no_grad():
        vae = AnimateVae()
        use_own_layers(vae, by_frames=name != "resident")
        vae.tiled = name == "tiled"
        with Peak(*vae.parameters()) as memory:
            vae.decode_video(torch.empty(1, 16, 20, height // 8, width // 8))
        decoding = memory.peak
        with Peak(*vae.parameters()) as memory:
            vae.encode_video(torch.empty(1, 3, 77, height, width))
    assert memory.peak < decoding
    # Sizes of a model that has only a VAE.
    alone = replace(BIG, transformer=0, loaded=0, block=0, outside=0, text_encoder=0, vae=0, dim=0)
    expected = {way.name: way.vram - placement.OVERHEAD for way in placements(alone, SegmentShape(height, width, 77))}
    assert expected[name] == pytest.approx(decoding, rel=0.06)


BIG = Sizes(
    transformer=35 * GB, loaded=35 * GB, block=GB, block_parameters=GB // 2, outside=GB, text_encoder=11 * GB,
    vae=GB // 2, dim=5120, head_dim=128, layers=40, adapters=8, peak_maps=(11.1, 6.1), vae_width=96,
    itemsize=2, vae_itemsize=4,
)  # fmt: skip


def test_each_way_takes_less_than_the_one_before():
    ways = placements(BIG, SegmentShape(480, 832, 77))
    assert [way.name for way in ways] == ["resident", "swap", "offload", "tiled"]
    assert ways[0].vram >= ways[1].vram > ways[2].vram > ways[3].vram
    assert ways[0].vram > BIG.transformer
    assert ways[2].vram < BIG.transformer < ways[2].ram


def test_weights_to_quantise_pass_through_host_memory():
    small = replace(BIG, transformer=18 * GB)
    ways = placements(small, SegmentShape(480, 832, 77))
    assert all(way.ram > BIG.loaded for way in ways)
    assert ways[0].vram == placements(BIG, SegmentShape(480, 832, 77))[0].vram - 17 * GB


def test_ranks_share_activations_and_with_fsdp_also_weights():
    segment = SegmentShape(720, 1280, 77)
    one, two = placements(BIG, segment)[0].vram, placements(BIG, segment, ranks=2)[0].vram
    (sharded,) = placements(BIG, segment, ranks=2, fsdp=True)
    assert one - two > 5 * GB
    assert two - sharded.vram == BIG.transformer // 2


def test_a_text_encoder_that_stays_loaded_is_counted():
    segment = SegmentShape(480, 832, 77)
    freed, kept = (placements(BIG, segment, keep_text=keep) for keep in (False, True))
    assert [after.vram - before.vram for before, after in zip(freed, kept, strict=True)] == [11 * GB, 11 * GB, 0, 0]


def test_the_first_placement_that_fits_is_chosen():
    ways = [Placement("resident", 40, 1), Placement("swap", 30, 50), Placement("offload", 10, 50)]
    assert [way.name for way in choose(ways, 40, 50)] == ["resident", "swap", "offload"]
    assert [way.name for way in choose(ways, 20, 50)] == ["offload"]
    assert [way.name for way in choose(ways, 35, 10)] == ["offload"]


def test_the_message_names_the_placement_and_what_to_change():
    message = placement.out_of_memory(RuntimeError("no room"), Placement("swap"), SegmentShape(720, 1280, 77))
    for words in ("placement swap", "1280x720x77", "no room", "placement: offload", "clip_len", "wan-animate plan"):
        assert words in message
