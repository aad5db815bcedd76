import json
from fractions import Fraction

import numpy as np
import pytest
from figures import driving, figure, picture_of, walk
from PIL import Image

from wan_orchestration.preprocess.estimators.base import Detection, Frame
from wan_orchestration.preprocess.people import NumberedPeople
from wan_orchestration.preprocess.pipeline import preprocess
from wan_orchestration.protocol.messages import Look
from wan_orchestration.settings.preprocess import PreprocessSettings
from wan_orchestration.video.reader import FrameReader
from wan_orchestration.video.writer import write_lossless

SIZE = (320, 240)


def frames_of(path) -> np.ndarray:
    with FrameReader(path) as reader:
        return reader.read(range(reader.info.frames))


@pytest.fixture
def make(tmp_path):
    """Makes the clips of a video in `tmp_path`. Returns their folder and its `look.json`."""
    Image.fromarray(picture_of(figure((90, 160), 140, (45, 150)))).save(tmp_path / "reference.png")

    def run(**settings):
        clips = tmp_path / "clips"
        preprocess(
            tmp_path / "driving.mp4",
            tmp_path / "reference.png",
            clips,
            PreprocessSettings(resolution_area=128 * 128, retarget="off", **settings),
            snapshot=None,
            models_root=tmp_path,
        )
        return clips, Look.model_validate_json((clips / "look.json").read_text())

    return run


def test_the_overlay_shows_the_followed_person_with_the_mask(tmp_path, make):
    small = [figure(SIZE, 90, (60 + 2 * i, 200)) for i in range(12)]
    large = [figure(SIZE, 180, (250, 220))] * 12
    write_lossless(
        tmp_path / "driving.mp4", [picture_of(a) // 2 + picture_of(b) // 2 for a, b in zip(small, large)], Fraction(30)
    )
    people = [
        {"people": [{"pose_keypoints_2d": pose.body.ravel().tolist()} for pose in pair]} for pair in zip(small, large)
    ]
    (tmp_path / "keypoints.json").write_text(json.dumps(people))
    masks = [np.zeros((240, 320), np.uint8) for _ in small]
    for mask in masks:
        mask[10:40, 100:150] = 255
    write_lossless(tmp_path / "mask.mp4", masks, Fraction(30), "gray")
    clips, look = make(mode="replace", person="index:2", mask_iterations=0, start=0.1)
    assert (look.frames, look.start, look.end, look.source_width, look.people_frame) == (9, 0.1, 0.4, 320, 0)
    assert look.people_seconds == pytest.approx(0.1, abs=1e-3)
    assert [(person.number, person.followed) for person in look.people] == [(1, False), (2, True)]
    assert look.people[0].box[0] > 0.6 > look.people[1].box[2]
    assert any(warning.text.startswith("several people") and warning.frames == [(0, 8)] for warning in look.warnings)
    overlay, bare = frames_of(clips / "overlay.mp4"), frames_of(tmp_path / "driving.mp4")[3:].astype(int)
    assert overlay.shape == (9, 240, 320, 3)
    added = overlay[:, 15:35, 105:145].astype(int) - bare[:, 15:35, 105:145]
    assert added[..., 0].min() > 30 and added[..., 1].max() < -20, "the mask is tinted"
    changed = np.abs(overlay - bare).max(axis=-1) > 60
    first, second = changed[:, 60:, 220:].mean(axis=(1, 2)), changed[:, 60:, :200].mean(axis=(1, 2))
    assert first.max() < 0.005 < 0.01 < second.min(), "only the second person is drawn"
    assert Image.open(clips / "people.jpg").size == SIZE


def test_the_timeline_spans_the_whole_video(tmp_path, make):
    poses = walk(40)
    driving(tmp_path, poses)
    pictures = [np.full((120, 160, 3), 6 * i, np.uint8) for i in range(40)]
    write_lossless(tmp_path / "driving.mp4", pictures, Fraction(30))
    _, look = make(start=0.5, end=0.8)
    assert (look.frames, look.start, look.end) == (9, 0.5, 0.8) and look.source_seconds == pytest.approx(4 / 3)
    strip = np.asarray(Image.open(tmp_path / "clips/timeline.jpg")).astype(float)
    assert strip.shape == (72, 16 * 96, 3)
    shades = strip.reshape(72, 16, 96, 3).mean(axis=(0, 2, 3)) / 6
    assert shades == pytest.approx([(i + 0.5) * 2.5 for i in range(16)], abs=1.5)


def person(x: float, width: float) -> Detection:
    return Detection((x - width / 2, 0.0, x + width / 2, width), 0.9)


def test_a_number_stays_with_its_person_until_the_frame_with_most_people():
    """Numbers are by size where they are given; later, sizes change."""
    people, picture = NumberedPeople(30, SIZE), np.zeros((240, 320, 3), np.uint8)
    for t in range(40):
        here = [person(60, 60)]
        here += [person(160, 40 + 2 * max(t - 10, 0))] if t >= 5 else []
        here += [person(300, 20)] if t >= 30 else []
        people.add(t, Frame(t, t / 30, picture), here[::-1], here[:1])
    assert (people.index, people.seconds, people.unnumbered) == (30, 1.0, 0)
    centres = {each.number: (each.box[0] + each.box[2]) / 2 * 320 for each in people.people}
    assert centres == pytest.approx({1: 60, 2: 160, 3: 300}, abs=1)
    assert [each.number for each in people.people if each.followed] == [1]


def test_a_person_without_a_number_is_counted():
    """index:2 is the second largest where two are visible first, and that is the first person again."""
    people, picture = NumberedPeople(30, SIZE), np.zeros((240, 320, 3), np.uint8)
    people.add(0, Frame(0, 0.0, picture), [person(60, 60)], [])
    people.add(1, Frame(1, 1 / 30, picture), [person(60, 60), person(200, 90)], [])
    assert [each.number for each in people.people] == [1] and people.unnumbered == 1
