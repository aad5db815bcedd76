import hashlib
import math
import zipfile
from pathlib import Path

import numpy as np
import pytest
from figures import SHARED, figure

from wan_orchestration.errors import BadInput
from wan_orchestration.preprocess.estimators import light_models as models
from wan_orchestration.preprocess.estimators.base import Frame
from wan_orchestration.preprocess.estimators.light import Light, LightOutline, _refined, _region_around
from wan_orchestration.preprocess.estimators.litert import Region, anchor_centres, decode_boxes
from wan_orchestration.video import FrameReader


def test_anchors_are_as_many_as_the_networks_answer():
    assert anchor_centres(224, (8, 16, 32, 32, 32)).shape == (2254, 2)
    face = anchor_centres(128, (8, 16, 16, 16))
    assert face.shape == (896, 2)
    assert np.allclose(face[:3], [[1 / 32, 1 / 32], [1 / 32, 1 / 32], [3 / 32, 1 / 32]])


def test_boxes_that_overlap_are_merged_by_score():
    anchors = np.array([[0.5, 0.5], [0.5, 0.5], [0.1, 0.1]])
    raw = np.array([[0, 0, 40, 40, 10, 0], [4, 0, 40, 40, 10, 0], [0, 0, 10, 10, 1, 1]], float)
    found = decode_boxes(raw, np.array([2.0, 2.0, -1.0]), anchors, 100)
    assert len(found) == 1
    points, score = found[0]
    assert score == pytest.approx(1 / (1 + math.exp(-2)))
    assert np.allclose(points, [[0.32, 0.3], [0.72, 0.7], [0.6, 0.5]])
    assert decode_boxes(raw, np.full(3, -1.0), anchors, 100) == []


def test_a_region_is_cut_and_placed_back():
    picture = np.zeros((200, 300, 3), np.uint8)
    picture[98:103, 198:203] = 255
    region = Region(180.0, 90.0, 80.0, 0.6)
    cut = region.cut(picture, 160)
    ys, xs = np.nonzero(cut[..., 0] > 127)
    assert np.allclose(region.place(np.array([[xs.mean(), ys.mean()]]), 160), [[200, 100]], atol=0.6)


def test_a_region_spans_its_circle_upright():
    upright = Region.spanned(np.array([100.0, 100.0]), np.array([100.0, 60.0]), 1.25, 90)
    assert (upright.side, upright.rotation) == (100, pytest.approx(0))
    lying = Region.spanned(np.array([100.0, 100.0]), np.array([140.0, 100.0]), 1.25, 90)
    assert abs(lying.rotation) == pytest.approx(math.pi / 2)
    below = upright.shifted_down(0.1)
    assert (below.x, below.y) == (pytest.approx(100), pytest.approx(110))


def test_heat_maps_move_points_only_where_they_are_sure():
    maps = np.zeros((64, 64, 2))
    maps[30:33, 40:43, 0] = 0.9
    points = _refined(np.array([[160.0, 120.0], [50.0, 60.0]]), maps, 256)
    assert np.allclose(points, [[164, 124], [50, 60]])


def test_the_outlines_region_holds_the_whole_person():
    pose = figure((400, 300), 200, (150, 280))
    region = _region_around(pose.body)
    for x, y, _ in pose.body:
        assert math.hypot(x - region.x, y - region.y) < region.side / 2
    assert region.rotation == pytest.approx(0, abs=0.05)
    pose.body[:, 2] = 0
    assert _region_around(pose.body) is None


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A wheel of the right name with small files, offered to pip as its only source."""
    contents = {name: f"network {name}".encode() for name in models.FILES}
    monkeypatch.setattr(models, "FILES", {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()})
    offered = tmp_path / "wheels"
    offered.mkdir()
    path = offered / "mediapipe-0.10.21-cp311-cp311-manylinux_2_28_x86_64.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in contents.items():
            archive.writestr(f"mediapipe/modules/{name}.tflite", data)
        archive.writestr(
            "mediapipe-0.10.21.dist-info/METADATA", "Metadata-Version: 2.1\nName: mediapipe\nVersion: 0.10.21\n"
        )
        archive.writestr(
            "mediapipe-0.10.21.dist-info/WHEEL",
            "Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: cp311-cp311-manylinux_2_28_x86_64\n",
        )
        archive.writestr("mediapipe-0.10.21.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(offered))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return path


def test_the_networks_are_fetched_once_through_pip_and_checked(tmp_path, wheel):
    told = []
    folder = models.light_models(None, tmp_path / "models", told.append)
    assert sorted(file.name for file in folder.iterdir()) == sorted(
        f"{name.split('/')[1]}.tflite" for name in models.FILES
    )
    assert len(told) == 1 and "mediapipe==0.10.21" in told[0]
    wheel.unlink()
    assert models.light_models(None, tmp_path / "models", told.append) == folder
    assert models.light_models(folder, tmp_path / "elsewhere", told.append) == folder
    assert len(told) == 1


def test_a_damaged_file_is_fetched_again_and_refused_in_a_users_folder(tmp_path, wheel):
    folder = models.light_models(None, tmp_path / "models", print)
    (folder / "hand_recrop.tflite").write_bytes(b"damaged")
    with pytest.raises(BadInput, match=r"hand_recrop\.tflite is a.* with SHA-256 .* expected"):
        models.light_models(folder, tmp_path, print)
    models.light_models(None, tmp_path / "models", print)
    assert (folder / "hand_recrop.tflite").read_bytes() != b"damaged"


def test_without_the_wheel_the_error_says_what_to_do(tmp_path, wheel):
    wheel.unlink()
    with pytest.raises(BadInput, match=r"(?s)could not download mediapipe==0\.10\.21.*light_models"):
        models.light_models(None, tmp_path / "models", print)
    assert not (tmp_path / "models/light").exists()


@pytest.mark.heavy
def test_finds_the_person_of_a_real_video(tmp_path):
    """Fetches the networks through pip."""
    video = SHARED / "examples/animate/video.mp4"
    if not video.is_file():
        pytest.skip(f"no real video at {video}")
    folder = models.light_models(None, Path(tmp_path), print)
    estimator = Light(folder, threads=1)
    with FrameReader(video) as reader:
        frames = [Frame(i, reader.times[i], reader.read([i])[0]) for i in range(0, 106, 15)]
    people = estimator.detect(frames)
    assert all(people)
    poses = estimator.estimate(frames, [max(found, key=lambda person: person.score) for found in people])
    assert all(pose is not None and pose.has("body") and pose.has("face") for pose in poses)
    assert np.mean([pose.has("right_hand") for pose in poses]) > 0.7
    mask = LightOutline(folder)(frames[0].pixels, poses[0])
    nose = poses[0].body[0, :2].astype(int)
    assert mask[nose[1], nose[0]] == 1 and 0.1 < mask.mean() < 0.6
