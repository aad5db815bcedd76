import hashlib
import math
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from figures import figure

from wan_orchestration.errors import BadInput
from wan_orchestration.preprocess.estimators import light
from wan_orchestration.preprocess.estimators import light_models as models
from wan_orchestration.preprocess.estimators.base import Frame
from wan_orchestration.preprocess.estimators.light import Light, LightNetworks, LightOutline, _refined, _region_around
from wan_orchestration.preprocess.estimators.litert import Region, anchor_centres, decode_boxes
from wan_orchestration.preprocess.tracking import Choice
from wan_orchestration.video.reader import FrameReader


def test_the_number_of_anchors_is_that_of_the_networks_outputs():
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


def test_heatmaps_move_points_only_if_certain():
    maps = np.zeros((64, 64, 2))
    maps[30:33, 40:43, 0] = 0.9
    points = _refined(np.array([[160.0, 120.0], [50.0, 60.0]]), maps, 256)
    assert np.allclose(points, [[164, 124], [50, 60]])


def test_the_region_of_the_outline_covers_the_whole_person():
    pose = figure((400, 300), 200, (150, 280))
    region = _region_around(pose.body)
    for x, y, _ in pose.body:
        assert math.hypot(x - region.x, y - region.y) < region.side / 2
    assert region.rotation == pytest.approx(0, abs=0.05)
    pose.body[:, 2] = 0
    assert _region_around(pose.body) is None


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A wheel with the right name and small files, which is pip's only source."""
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


def test_the_networks_are_downloaded_once_and_checked(tmp_path, wheel):
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


def test_a_damaged_file_is_downloaded_again_but_refused_in_a_users_folder(tmp_path, wheel):
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


class SeesBlobs:
    """Replaces a network. People are red rectangles; like the real detector, it finds only the largest."""

    looks = 0

    def __init__(self, path: Path):
        self.side = {"pose_detection": 224, "pose_landmark_full": 256}.get(path.stem, 128)
        self._answer = {"pose_detection": self.detector, "pose_landmark_full": self.body}.get(path.stem)

    def __call__(self, picture):
        red, faint = picture[..., 0] > 0.9, picture[..., 1] > 0.5
        _, _, stats, _ = cv2.connectedComponentsWithStats(red.astype(np.uint8))
        return self._answer(
            [(*row[:4], faint[row[1] : row[1] + row[3], row[0] : row[0] + row[2]].any()) for row in stats[1:]]
        )

    def detector(self, blobs):
        type(self).looks += 1
        raw, logits = np.zeros((2254, 12)), np.full(2254, -100.0)
        for x, y, w, h, faint in sorted(blobs, key=lambda blob: -blob[2] * blob[3])[:1]:
            anchor = light._POSE_ANCHORS[0] * 224
            raw[0] = [
                *([x, y] - anchor),
                w,
                h,
                *([x + w / 2, y + h / 2] - anchor),
                *([x + w / 2, y] - anchor),
                0,
                0,
                0,
                0,
            ]
            logits[0] = 0.1 if faint else 3
        return raw[None], logits[None]

    def body(self, blobs):
        """All points lie on the outline of the central blob: nose at the top, hips at the bottom."""
        x, y, w, h, _ = min(
            blobs, key=lambda blob: math.dist((blob[0] + blob[2] / 2, blob[1] + blob[3] / 2), (128, 128))
        )
        points = np.array([[x + w * (i % 2), y + h * (i > 10), 0, 9, 9] for i in range(39)], float)
        return [points.reshape(1, 195), np.ones((1, 1)), np.full((1, 64, 64, 39), -100.0)]


def crowd(*people: tuple[int, int, int, int], green: int = 0) -> np.ndarray:
    picture = np.zeros((240, 640, 3), np.uint8)
    for x0, y0, x1, y1 in people:
        picture[y0:y1, x0:x1] = 255, green, 0
    return picture


@pytest.fixture
def blobs(monkeypatch):
    monkeypatch.setattr(light, "TfliteNetwork", SeesBlobs)
    monkeypatch.setattr(SeesBlobs, "looks", 0)
    return Light(LightNetworks(Path("models"), threads=2))


NEAR, FAR, THIRD = (60, 20, 140, 220), (300, 90, 360, 200), (500, 100, 560, 200)


def test_people_side_by_side_are_found_with_their_extent(blobs):
    (people,) = blobs.detect([Frame(0, 0.0, crowd(NEAR, FAR, THIRD))])
    assert np.allclose(
        [person.box for person in people], [(40, 0, 160, 240), (289, 79, 371, 211), (490, 90, 570, 210)], atol=4
    )
    picked = Choice.parse("point:530,150").pick(people, (640, 240))
    assert picked is people[2] and Choice.parse("index:2").pick(people, (640, 240)) is people[1]


def test_between_searches_a_frame_with_one_person_takes_one_detection(blobs):
    frames = [Frame(i, i / 10, crowd(NEAR) if i < 3 else crowd(NEAR, FAR)) for i in range(7)]
    assert [len(people) for people in blobs.detect(frames[:5])] == [1] * 5
    # The first frame is searched again as a whole and in three squares.
    assert SeesBlobs.looks == 5 + 4
    assert [len(people) for people in blobs.detect(frames[5:])] == [2, 2]
    (again,) = blobs.detect([Frame(0, 0.0, crowd(NEAR, FAR))])
    assert len(again) == 2, "another picture"


def test_an_uncertain_detection_counts_only_if_it_is_the_only_one(blobs):
    poster = crowd(FAR, green=200)
    assert [len(people) for people in blobs.detect([Frame(0, 0.0, poster), Frame(1, 0.6, poster + crowd(NEAR))])] == [
        1,
        1,
    ]


@pytest.fixture(scope="module")
def networks(tmp_path_factory) -> Path:
    """The real networks, downloaded with pip."""
    return models.light_models(None, tmp_path_factory.mktemp("models"), print)


@pytest.mark.heavy
def test_two_real_people_side_by_side_are_both_found(shared, networks):
    with FrameReader(shared / "examples/animate/video.mp4") as reader:
        near, far = (frame[:, 760:1900] for frame in reader.read([20, 60]))
    picture = np.full((720, 1280, 3), 120, np.uint8)
    picture[60:720, 20:717] = cv2.resize(near, (697, 660), interpolation=cv2.INTER_AREA)
    picture[360:660, 880:1197] = cv2.resize(far, (317, 300), interpolation=cv2.INTER_AREA)
    frame = Frame(0, 0.0, picture)
    (people,) = Light(LightNetworks(networks, threads=1)).detect([frame])
    assert len(people) == 2
    for choice, (left, right) in {"largest": (20, 717), "index:2": (880, 1197), "point:1000,500": (880, 1197)}.items():
        person = Choice.parse(choice).pick(people, frame.size)
        assert person is not None and left < person.box[0] < person.box[2] < right


@pytest.mark.heavy
def test_finds_the_person_of_a_real_video(shared, networks):
    video, folder = shared / "examples/animate/video.mp4", networks
    estimator = Light(LightNetworks(folder, threads=1))
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
