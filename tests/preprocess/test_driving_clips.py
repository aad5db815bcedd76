"""The clips of Wan-Animate-2, against recorded inputs of the published code (../shared/parity2)."""

import json
from fractions import Fraction

import numpy as np
import pytest
from figures import driving, picture_of, save_keypoints, walk
from PIL import Image

from wan_orchestration.errors import BadInput
from wan_orchestration.families.animate_2.clips import choose_frames, make
from wan_orchestration.jobs.clips import JOINTS, Canvas, check_clips
from wan_orchestration.preprocess.geometry import Letterbox, letterbox
from wan_orchestration.quality.clips_quality import failed_checks, measure_clips
from wan_orchestration.quality.driving import DrivingReader, reference_of
from wan_orchestration.quality.frame_measures import STILL
from wan_orchestration.quality.pose import fit, similarity
from wan_orchestration.settings.checks import CheckSettings
from wan_orchestration.settings.preprocess import PreprocessSettings
from wan_orchestration.video.info import VideoInfo
from wan_orchestration.video.reader import iter_frames
from wan_orchestration.video.stills import read_image


@pytest.mark.parametrize("name", ["a_base_1seg", "b_base_3seg_partial", "c_distill_2seg_portrait"])
def test_clips_are_the_published_ones(shared, tmp_path, name):
    case = shared / "parity2/cases" / name
    facts = json.loads((case / "params.json").read_text())
    inputs, known = np.load(case / "inputs.npz"), np.load(case / "intermediates.npz")
    area = facts["width"] * facts["height"]
    settings = PreprocessSettings(model="animate-2", resolution_area=area, light_models=tmp_path)
    files = case / "job/driving.mp4", case / "job/picture.png", tmp_path / "clips"
    result = make(*files, settings, snapshot=None, models_root=tmp_path)
    assert "cannot be found" in result.warnings[0].text, "a missing estimator does not stop the job"
    clips = check_clips(tmp_path / "clips", "animate", model="animate-2")
    frames = np.stack(list(iter_frames(clips.driving.path)))
    wanted = [letterbox(inputs["driving"][i], tuple(facts["driving_canvas_wh"])) for i in facts["source_frame_indices"]]
    np.testing.assert_array_equal(frames, wanted)
    np.testing.assert_array_equal(frames[0], known["driving_canvas0"])
    np.testing.assert_array_equal(read_image(clips.reference), known["picture_canvas"])
    canvas, crop = clips.canvas, facts["crop"]
    assert (canvas.area, [clips.width, clips.height]) == (area, facts["picture_canvas_wh"])
    assert (canvas.left, canvas.top, canvas.picture_height) == (0, crop["padding"], crop["side_long"])
    assert [canvas.video_height, canvas.video_width] == facts["output_shape"][2:]
    assert reference_of(clips).shape[:2] == (canvas.picture_height, canvas.picture_width)
    measured = measure_clips(clips)
    assert (measured.skeleton, measured.face, measured.largest_jump) == (None, None, None)
    assert not failed_checks(measured, CheckSettings())


def test_odd_pictures_lose_a_row_or_a_column():
    canvas = Canvas(area=1536, height=32, width=48, top=1, left=0, picture_height=29, picture_width=47)
    assert (canvas.video_height, canvas.video_width) == (28, 46)


def test_frames_are_counted_unless_they_are_uneven(tmp_path):
    def chosen(times, rate, **settings):
        info = VideoInfo(tmp_path, 8, 8, Fraction(rate), len(times), times[-1] + 1 / rate, has_audio=False)
        return choose_frames(times, info, PreprocessSettings(**settings))[1]

    even = [i / 60 for i in range(60)]
    assert chosen(even, 60)[:4] == [0, 2, 5, 8], "halves are rounded to even"
    assert chosen(even[:2], 60) == []
    assert chosen(even, 60, start=0.5) == [30, 32, 35, 38, 40, 42, 45, 48, 50, 52, 55, 58]
    assert chosen(even, 60, end=0.1, max_frames=3) == [0, 2] and len(chosen(even, 60, max_frames=3)) == 3
    paused = [0.0, 0.1, 0.2, 0.3, 1.0, 1.1]
    assert chosen(paused, 10, fps=10) == [0, 1, 2, *[3] * 7, 4, 5]


def test_joints_are_in_the_frames_of_the_driving_clip(tmp_path):
    poses = walk(5)
    driving(tmp_path, poses, fps=24)
    poses[2].body[:, 2] = 0
    save_keypoints(tmp_path / "keypoints.npz", poses)
    Image.fromarray(picture_of(poses[0])[:101, :75]).save(tmp_path / "reference.png")
    settings = PreprocessSettings(model="animate-2", resolution_area=96 * 96)
    files = tmp_path / "driving.mp4", tmp_path / "reference.png", tmp_path / "clips"
    result = make(*files, settings, snapshot=None, models_root=tmp_path)
    assert (result.estimator, result.person_found) == ("file", 4)
    assert [notice.frames for notice in result.warnings] == [[(2, 2)]]

    clips = check_clips(tmp_path / "clips", "animate", model="animate-2")
    assert (clips.driving.width, clips.driving.height) != (clips.width, clips.height)
    body = np.load(clips.folder / JOINTS)["body"]
    fitted = Letterbox.into(poses[0].size, (clips.driving.width, clips.driving.height))
    np.testing.assert_allclose(
        body[4], poses[4].moved(fitted.scale(poses[4].size), (fitted.left, fitted.top), (0, 0)).body, atol=0.01
    )
    with DrivingReader(clips) as reader:
        assert reader.skeleton(1).any() and not reader.skeleton(2).any()
        assert np.abs(reader.skeleton(1).astype(int) - reader.skeleton(3)).mean() > STILL, "it moves"
    measured = measure_clips(clips)
    assert (measured.skeleton, measured.width) == (0.8, clips.width) and 0 < measured.largest_jump < 0.15
    assert failed_checks(measured, CheckSettings())["skeleton"].startswith(
        "a person was found in the driving video in 80 %"
    )

    # The same pose, in another place and of another size, is the same performance.
    elsewhere = body[1] * (0.4, 0.4, 1) + (200, 30, 0)
    assert similarity(body[1], fit(elsewhere, body[1])) == pytest.approx(1)
    assert similarity(body[1], fit(elsewhere[::-1], body[1])) < 0.5

    (clips.folder / "canvas.json").write_text(
        (clips.folder / "canvas.json").read_text().replace('"top": 0', '"top": 90')
    )
    with pytest.raises(BadInput, match=r"canvas.json: found a picture of 71x96 at 4, 90, expected"):
        check_clips(clips.folder, "animate", model="animate-2")
    (clips.folder / "canvas.json").write_text('{"area": 9}')
    with pytest.raises(BadInput, match=r"canvas.json: height: missing"):
        check_clips(clips.folder, "animate", model="animate-2")
    with pytest.raises(BadInput, match=r"missing src_pose.mp4, src_face.mp4; mode animate needs"):
        check_clips(clips.folder, "animate")
