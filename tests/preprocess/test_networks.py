"""Networks stay open from one job to the next, and no state of a video stays with them."""

from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from figures import figure, picture_of
from onnx_stubs import heatmap_cells, write_snapshot
from PIL import Image
from sam2_layout import random_weights

from wan_orchestration.errors import BadInput
from wan_orchestration.preprocess import outlines, sam2_weights
from wan_orchestration.preprocess.estimators import choose, light, vitpose
from wan_orchestration.preprocess.estimators.base import Frame
from wan_orchestration.preprocess.estimators.vitpose import VitPoseNetworks, open_vitpose, pose_window
from wan_orchestration.preprocess.networks import Networks
from wan_orchestration.preprocess.pipeline import preprocess
from wan_orchestration.quality.pose import local_estimator
from wan_orchestration.settings.preprocess import PreprocessSettings
from wan_orchestration.video.writer import write_lossless

SIZE = (96, 128)
BOX = (24, 8, 72, 124)


@pytest.fixture
def snapshot(tmp_path) -> Path:
    """Networks that find the same person in every picture, and a small SAM 2 of random weights."""
    pose = figure(SIZE, 110, (48, 124))
    row = np.array([[*(np.array(BOX) / (*SIZE, *SIZE) * 640 + 0.01), 0.9, 0]])
    folder = write_snapshot(tmp_path / "snapshot", row, heatmap_cells(pose, *pose_window(BOX, SIZE)))
    (folder / outlines.SAM2).parent.mkdir()
    torch.save({"model": random_weights()}, folder / outlines.SAM2)
    return folder


def test_a_network_is_opened_once_until_its_file_changes(tmp_path):
    file, networks, opened = tmp_path / "network", Networks(), []

    def load():
        if not file.exists():
            file.touch()  # a download
        opened.append(object())
        return opened[-1]

    def ask(device="cpu"):
        return networks.open("light", device, [file], load)

    assert ask() is ask() is opened[0] and len(opened) == 1
    assert ask("cuda") is opened[1] and ask() is opened[0]
    (tmp_path / "new").write_bytes(b"123")
    (tmp_path / "new").rename(file)
    assert ask() is opened[2] and networks.bytes_on("cpu") == 3
    assert networks.free() and not networks.free() and networks.bytes_on("cpu") == 0
    assert ask() is opened[3]


def test_a_failed_opening_leaves_nothing_open(tmp_path):
    networks = Networks()
    networks.open("light", "cpu", [tmp_path / "one"], object)

    def damaged():
        raise BadInput("damaged")

    (tmp_path / "two").touch()
    with pytest.raises(BadInput, match="damaged"):
        networks.open("light", "cpu", [tmp_path / "two"], damaged)
    assert not networks.free()


def test_jobs_in_any_order_get_the_clips_of_freshly_opened_networks(tmp_path, snapshot, monkeypatch):
    monkeypatch.setattr(sam2_weights, "load_sam2", partial(sam2_weights.load_sam2, side=64))
    noise = np.random.default_rng(0).integers(0, 256, (2, 5, SIZE[1], SIZE[0], 3), np.uint8)
    for name, frames in zip("ab", noise):
        (tmp_path / name).mkdir()
        write_lossless(tmp_path / name / "driving.mp4", list(frames), Fraction(30))
        Image.fromarray(picture_of(figure(SIZE, 110, (48, 124)))).save(tmp_path / name / "reference.png")

    def clips(name, mode, networks):
        result = preprocess(
            tmp_path / name / "driving.mp4",
            tmp_path / name / "reference.png",
            tmp_path / "clips",
            PreprocessSettings(mode=mode, resolution_area=64 * 64, mask_iterations=0, empty_mask="box", device="cpu"),
            snapshot=snapshot,
            models_root=tmp_path,
            networks=networks,
        )
        assert (result.estimator, result.masks) == ("vitpose", "sam2" if mode == "replace" else None)
        return {file.name: file.read_bytes() for file in result.output.glob("src_*")}

    jobs = [("a", "replace"), ("b", "animate"), ("b", "replace")]
    fresh = {job: clips(*job, None) for job in jobs}
    assert fresh["a", "replace"]["src_mask.mp4"] != fresh["b", "replace"]["src_mask.mp4"]
    networks = Networks()
    for job in [*jobs, jobs[0]]:
        assert clips(*job, networks) == fresh[job], job


def test_the_quality_measure_uses_the_networks_of_preprocessing(tmp_path, snapshot, monkeypatch):
    networks, loaded = Networks(), []

    def load(*arguments):
        loaded.append(arguments)
        return VitPoseNetworks(*arguments)

    monkeypatch.setattr(vitpose, "VitPoseNetworks", load)
    for order in ("rgb", "published"):
        open_vitpose(snapshot, order, "cpu", networks)
    local_estimator(snapshot, tmp_path, networks)
    assert loaded == [(snapshot, "cpu")]
    # Large networks keep their weights in a file beside the ONNX file.
    (snapshot / vitpose.POSE).with_name("weights.bin").touch()
    local_estimator(snapshot, tmp_path, networks)
    assert len(loaded) == 2


def test_a_video_that_starts_late_is_searched_like_any_other(tmp_path, monkeypatch):
    """The light estimator searches twice a second, by the frames' times. Each video starts anew."""
    searched = []

    class Worker:
        def __init__(self, models):
            pass

        def detect(self, picture, everywhere):
            searched.append(everywhere)
            return []

    monkeypatch.setattr(light, "_Worker", Worker)
    monkeypatch.setattr(choose, "light_models", lambda folder, root, log: tmp_path)
    networks = Networks()
    for start in (0.0, 0.3):
        estimator = choose.open_light(tmp_path, tmp_path, print, networks)
        for i in range(3):
            estimator.detect([Frame(i, start + i / 10, np.zeros((2, 2, 3), np.uint8))])
    assert searched == [True, False, False] * 2


@pytest.mark.parametrize(
    "words", ["Failed to allocate memory for requested buffer of size 9", "CUDA failure 2: out of memory"]
)
def test_no_memory_for_a_network_is_no_bad_input(snapshot, monkeypatch, words):
    networks = VitPoseNetworks(snapshot, "cpu")

    class Full:
        def run(self, *arguments):
            raise Exception(f"[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : {words}")

    monkeypatch.setattr(networks.detector, "_session", Full())
    with pytest.raises(MemoryError, match="ONNXRuntimeError"):
        networks.detector(np.zeros((1, 3, 640, 640), np.float32))
    monkeypatch.setattr("onnxruntime.InferenceSession", lambda *arguments, **options: Full().run())
    with pytest.raises(MemoryError, match=r"yolov10m\.onnx: "):
        VitPoseNetworks(snapshot, "cpu")
