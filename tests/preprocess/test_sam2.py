from dataclasses import replace

import numpy as np
import pytest
import torch
from figures import figure
from sam2_layout import LARGE, random_weights, shapes

from wan_orchestration.errors import BadInput
from wan_orchestration.preprocess.keypoints import Pose
from wan_orchestration.preprocess.mask_hints import Prompts
from wan_orchestration.preprocess.sam2 import Sam2, prompt_interval, prompt_points
from wan_orchestration.preprocess.sam2_weights import converted, load_sam2

SIDE = 64
SIZE = (96, 64)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("sam2") / "sam2_hiera_small_random.pt"
    torch.save({"model": random_weights()}, path)
    return path


@pytest.fixture(scope="module")
def model(weights):
    return load_sam2(weights, side=SIDE)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pose_at(t: int) -> Pose:
    return figure(SIZE, 50, (30 + t, 60))


def pictures(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, SIZE[1], SIZE[0], 3), np.uint8)


def test_every_tensor_of_the_large_layout_gets_a_new_name():
    layout = shapes(**LARGE)
    assert len(layout) == 900
    state = converted({name: torch.empty(shape, device="meta") for name, shape in layout.items()})
    assert len(state) == 898


def test_every_tensor_is_loaded(weights, model):
    original = torch.load(weights, weights_only=True)["model"]
    state = model.state_dict()
    pairs = {
        "image_encoder.trunk.blocks.1.mlp.layers.1.weight": "vision_encoder.backbone.blocks.1.mlp.proj_out.weight",
        "image_encoder.neck.convs.2.conv.bias": "vision_encoder.neck.convs.2.bias",
        "sam_mask_decoder.iou_prediction_head.layers.1.weight": "mask_decoder.iou_prediction_head.layers.0.weight",
        "sam_mask_decoder.transformer.layers.1.mlp.layers.0.bias": "mask_decoder.transformer.layers.1.mlp.proj_in.bias",
        "memory_encoder.mask_downsampler.encoder.6.bias": "memory_encoder.mask_downsampler.layers.2.conv.bias",
        "memory_encoder.fuser.layers.1.gamma": "memory_encoder.memory_fuser.layers.1.scale",
        "memory_encoder.out_proj.weight": "memory_encoder.projection.weight",
        "memory_attention.layers.3.self_attn.out_proj.weight": "memory_attention.layers.3.self_attn.o_proj.weight",
        "obj_ptr_proj.layers.2.bias": "object_pointer_proj.proj_out.bias",
        "maskmem_tpos_enc": "memory_temporal_positional_encoding",
    }
    for old, new in pairs.items():
        assert torch.equal(original[old], state[new]), new
    assert sum(tensor.numel() for tensor in original.values()) == sum(
        tensor.numel() for name, tensor in state.items() if name != "shared_image_embedding.positional_embedding"
    )


@pytest.mark.parametrize("change", ["missing", "unknown", "shape"])
def test_other_weights_are_refused(tmp_path, change):
    wrong = random_weights()
    if change == "missing":
        del wrong["no_mem_embed"]
    elif change == "unknown":
        wrong["obj_ptr_tpos_proj.weight"] = torch.zeros(4, 4)
    else:
        wrong["mask_downsample.weight"] = torch.zeros(1, 1, 2, 2)
    torch.save({"model": wrong}, tmp_path / "wrong.pt")
    with pytest.raises(BadInput, match=r"wrong\.pt: \d tensors do not fit"):
        load_sam2(tmp_path / "wrong.pt", side=SIDE)


def test_a_file_that_is_no_checkpoint_is_named(tmp_path):
    (tmp_path / "sam.pt").write_bytes(b"not weights")
    with pytest.raises(BadInput, match=r"sam\.pt is a text, not sam2_hiera_large"):
        load_sam2(tmp_path / "sam.pt", side=SIDE)


def test_deleting_old_frames_changes_no_pixel_and_keeps_memory_constant(model):
    forgetful, whole = Sam2(model, "cpu", 10), Sam2(model, "cpu", 10)
    whole._forget = lambda index: None
    kept = []
    for t, picture in enumerate(pictures(26)):
        masks = [each(t, picture, pose_at(t)) for each in (forgetful, whole)]
        assert np.array_equal(*masks) and masks[0].shape == (64, 96), t
        kept.append(sum(len(kind) for kind in forgetful._session.output_dict_per_obj[0].values()))
        assert not forgetful._session.processed_frames
    assert masks[0].any()
    assert max(kept) == max(kept[18:]) <= 16 + 3
    assert len(whole._session.processed_frames) == 26


def test_waits_for_joints_before_it_follows(model):
    follow = Sam2(model, "cpu", 10)
    nobody = Pose.empty(SIZE)
    assert not follow(0, pictures(1)[0], nobody).any() and follow._session is None
    follow(1, pictures(1)[0], pose_at(1))
    assert follow._prompted_at == 1


def test_prompts_are_confident_and_inside():
    pose = figure((100, 80), 70, (50, 75))
    assert len(prompt_points(pose)) == 8
    pose.body[0, 2] = 0.3
    pose.body[1, :2] = -1, 20
    pose.body[2, :2] = 100, 20
    points = prompt_points(pose)
    assert len(points) == 5
    assert np.array_equal(points, np.trunc(points))


@pytest.mark.parametrize(("frames", "interval"), [(2, 1), (8, 2), (77, 19), (400, 100), (9000, 100)])
def test_intervals_between_points(frames, interval):
    assert prompt_interval(frames) == interval


def test_hints_are_prompts(model, monkeypatch):
    """A box before the points, in the frame where it was drawn and in each later frame with prompts."""
    beside = np.array([[80.0, 30.0]])
    hints = Prompts([(10, 5, 50, 60), (20, 1, 40, 50)], np.array([[70.0, 20.0]]), beside, beside, drawn=False)
    follow, given = Sam2(model, "cpu", 3), {}
    prompt = follow._prompt

    def spy(index, points, labels, width, height) -> None:
        given[index] = points, labels
        prompt(index, points, labels, width, height)

    monkeypatch.setattr(follow, "_prompt", spy)
    for t, picture in enumerate(pictures(5)):
        follow(t, picture, pose_at(t), replace(hints, drawn=t == 2))
    assert sorted(given) == [0, 2]
    points, labels = given[2]
    joints = len(prompt_points(pose_at(2)))
    assert labels.tolist() == [2, 3, *[1] * (joints + 1), 0]
    assert points[:2].tolist() == [[10, 1], [50, 60]] and points[-2:].tolist() == [[70, 20], [80, 30]]
