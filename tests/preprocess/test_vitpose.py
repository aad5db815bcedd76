import json
import shutil

import numpy as np
import onnxruntime
import pytest
from figures import figure, picture_of
from onnx_stubs import heatmap_cells, write_snapshot

from wan_orchestration.errors import BadInput
from wan_orchestration.preprocess.estimators import dark
from wan_orchestration.preprocess.estimators.base import Frame
from wan_orchestration.preprocess.estimators.vitpose import (
    DETECTOR,
    POSE,
    VitPose,
    VitPoseNetworks,
    available,
    detector_input,
    open_vitpose,
    people,
    pose_input,
    pose_window,
)
from wan_orchestration.preprocess.networks import Networks

SIZE = (320, 240)


def test_decodes_heatmaps_as_published(golden):
    cases = np.load(golden / "pose2d/cases.npz")
    found = dark.decode(cases["decode/heatmaps_f32"], cases["decode/center"], cases["decode/scale"] * 200)
    assert np.allclose(found[..., :2], cases["decode/points"], rtol=0, atol=1e-3)
    assert np.allclose(found[..., 2:], cases["decode/prob"], rtol=0, atol=1e-6)


def test_decodes_peaks_at_the_border_and_maps_without_one_as_published(golden):
    cases = np.load(golden / "pose2d/cases.npz")
    found = dark.decode(cases["decode_edge/heatmaps"], np.array([[320.0, 180]]), np.array([[240.0, 320]]))
    assert np.allclose(found[..., :2], cases["decode_edge/points"], rtol=0, atol=1e-3)
    assert np.allclose(found[..., 2:], cases["decode_edge/prob"], rtol=0, atol=1e-6)


def test_finds_peaks_between_cells():
    cells = np.array([[10.3, 20.6], [30.0, 40.25], [17.8, 9.1]])
    ys, xs = np.mgrid[:64, :48]
    maps = np.exp(-((xs - cells[:, 0, None, None]) ** 2 + (ys - cells[:, 1, None, None]) ** 2) / 8)[None]
    found = dark.decode(maps, np.array([[24.0, 32]]), np.array([[48.0, 64]]))
    assert np.allclose(found[0, :, :2], cells, atol=0.02)


def test_finds_the_published_people(golden):
    cases = np.load(golden / "pose2d/cases.npz")
    for row in json.loads((golden / "pose2d/cases.json").read_text())["detector"]:
        found = people(cases[f"det/{row['name']}/rows"], (row["W"], row["H"]))
        if row["name"] == "overlap_other_class":
            # The published tools let an object suppress the person that overlaps it.
            assert len(found) == 1
        elif row["bbox"][4] < 0:
            assert not found
        else:
            assert max(found, key=lambda person: person.area).box == tuple(row["bbox"][:4]), row["name"]


def test_reads_a_raw_detector_output():
    raw = np.zeros((84, 8400), np.float32)
    raw[:4, 7] = 320, 320, 100, 200
    raw[4, 7] = 0.8
    raw[:5, 9] = 100, 100, 50, 50, 0.3
    raw[20, 9] = 0.7
    (person,) = people(raw, (640, 640))
    assert person.box == (270, 220, 370, 420) and person.score == pytest.approx(0.8)


def test_cuts_the_published_windows(golden):
    cases = np.load(golden / "pose2d/cases.npz")
    for row in json.loads((golden / "pose2d/cases.json").read_text())["crop"]:
        picture = cases[f"{row['key']}/img"]
        size = picture.shape[1], picture.shape[0]
        box = row["bbox"][:4] if row["bbox"][4] > 0 else (0, 0, *size)
        centre, extent = pose_window(tuple(box), size)
        assert np.allclose(centre, row["center"]) and np.allclose(extent / 200, row["scale"])
        fed = pose_input(picture, centre, extent, "rgb")
        assert np.allclose(fed, cases[f"{row['key']}/feed_f16"].astype(np.float32), atol=2e-3)


@pytest.mark.parametrize("kind", ["", "_static"])
@pytest.mark.parametrize("case", ["person", "portrait"])
def test_the_whole_chain_gives_the_published_points(golden, tmp_path, kind, case):
    for path, name in ((DETECTOR, "yolov10m_stub"), (POSE, "vitpose_h_wholebody_stub")):
        (tmp_path / path).parent.mkdir(parents=True)
        shutil.copy(golden / f"onnx_stubs/{name}{kind}.onnx", tmp_path / path)
    cases = np.load(golden / "pose2d/cases.npz")
    frames = [Frame(i, 0.0, pixels) for i, pixels in enumerate(cases[f"{case}/frames_rgb"])]
    estimator = VitPose(VitPoseNetworks(tmp_path, "cpu"), "published")
    found = [max(people, key=lambda person: person.area) for people in estimator.detect(frames)]
    for i, pose in enumerate(estimator.estimate(frames, found)):
        for part in ("body", "left_hand", "right_hand", "face"):
            published = cases[f"{case}/keypoints_{part}"][i][1 if part == "face" else 0 :].astype(np.float64)
            published[:, :2] *= frames[i].size
            assert np.allclose(getattr(pose, part), published, rtol=0, atol=1e-3), (part, i)
    fed = detector_input(frames[0].pixels)[:, ::8, ::8]
    assert np.allclose(fed, cases[f"{case}/det_feed_sub8_f16"][0], atol=1e-3)
    window = pose_window(found[0].box, frames[0].size)
    for order, flip in (("published", 1), ("rgb", -1)):
        fed = pose_input(frames[0].pixels, *window, order)
        std, mean = np.array([0.229, 0.224, 0.225]), np.array([0.485, 0.456, 0.406])
        published = cases[f"{case}/vit_feed_f16"][0].astype(np.float32) * std[:, None, None] + mean[:, None, None]
        made = fed * std[:, None, None] + mean[:, None, None]
        assert np.allclose(made, published[::flip], atol=2e-3), order


@pytest.mark.parametrize("batch", ["batch", 1, 3])
def test_any_batch_axis_gives_the_same(tmp_path, batch):
    pose = figure(SIZE, 200, (160, 230))
    box = np.array([[200, 60, 440, 620, 0.9, 0]])
    centre, extent = pose_window((100, 22, 220, 232), SIZE)
    snapshot = write_snapshot(tmp_path, box, heatmap_cells(pose, centre, extent), batch)
    assert available(snapshot)
    estimator = VitPose(VitPoseNetworks(snapshot, "cpu"), "published")
    frames = [Frame(i, 0.0, picture_of(pose)) for i in range(4)]
    people = estimator.detect(frames)
    assert [len(found) for found in people] == [1, 1, 1, 1]
    assert people[0][0].box == (100, 22, 220, 232)
    for found in estimator.estimate(frames, [found[0] for found in people]):
        assert np.allclose(found.body[:, :2], pose.body[:, :2], atol=0.3)
        assert np.allclose(found.left_hand[:, :2], pose.left_hand[:, :2], atol=0.3)


def test_a_missing_gpu_is_an_error_only_if_requested(tmp_path):
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    snapshot = write_snapshot(tmp_path, np.zeros((1, 6)), np.full((133, 2), 20.0))
    open_vitpose(snapshot, "published", "auto", Networks())
    with pytest.raises(BadInput, match="onnxruntime-gpu"):
        open_vitpose(snapshot, "published", "cuda", Networks())


def test_missing_and_damaged_networks_are_named(tmp_path):
    assert not available(tmp_path) and not available(None)
    with pytest.raises(BadInput, match=r"yolov10m\.onnx is missing.*ModelScope"):
        VitPose(VitPoseNetworks(tmp_path, "cpu"), "published")
    (tmp_path / DETECTOR).parent.mkdir(parents=True)
    (tmp_path / DETECTOR).write_bytes(b"not a network")
    with pytest.raises(BadInput, match=r"yolov10m\.onnx is a text, which cannot be loaded"):
        VitPose(VitPoseNetworks(tmp_path, "cpu"), "published")
