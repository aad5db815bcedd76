import json
import re
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from figures import driving, figure, picture_of, save_keypoints, walk
from onnx_stubs import heatmap_cells, write_snapshot
from PIL import Image

from wan_orchestration.errors import BadInput
from wan_orchestration.preprocess.estimators import light_models
from wan_orchestration.preprocess.estimators.vitpose import pose_window
from wan_orchestration.preprocess.pipeline import preprocess
from wan_orchestration.preprocess.side_by_side import write_side_by_side
from wan_orchestration.protocol.messages import PreprocessResult
from wan_orchestration.settings.preprocess import PreprocessSettings
from wan_orchestration.video.reader import FrameReader, probe
from wan_orchestration.video.writer import write_lossless

AREA = 256 * 256


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """The light estimator's networks cannot be downloaded."""

    def refuse(folder):
        raise BadInput("pip could not download them")

    monkeypatch.setattr(light_models, "_fetch", refuse)


@pytest.fixture
def reference(tmp_path):
    path = tmp_path / "reference.png"
    Image.fromarray(picture_of(figure((90, 160), 140, (45, 150)))).save(path)
    return path


def run(driving_path: Path, reference: Path, snapshot: Path | None = None, **settings) -> PreprocessResult:
    return preprocess(
        driving_path,
        reference,
        driving_path.parent / "clips",
        PreprocessSettings(resolution_area=AREA, **settings),
        snapshot=snapshot,
        models_root=driving_path.parent / "models",
    )


def frames_of(path: Path) -> np.ndarray:
    with FrameReader(path) as reader:
        return reader.read(range(reader.info.frames))


def stub_snapshot(folder: Path, pose) -> Path:
    """Networks that find `pose` in every picture of its size."""
    width, height = pose.size
    box = (
        pose.body[:, 0].min() // 1,
        pose.body[:, 1].min() // 1,
        pose.body[:, 0].max() // 1,
        pose.body[:, 1].max() // 1,
    )
    row = np.array([[*(np.array(box) / (width, height, width, height) * 640 + 0.01), 0.9, 0]])
    return write_snapshot(folder, row, heatmap_cells(pose, *pose_window(box, pose.size)))


def test_makes_the_clips_of_animate_mode(tmp_path, reference):
    path = driving(tmp_path / "job", walk(12))
    result = run(path, reference, retarget="off")
    assert result.estimator == "file" and result.frames == 12 and result.person_found == 12
    assert (result.width, result.height) == (192, 336)
    pose, face = probe(result.output / "src_pose.mp4"), probe(result.output / "src_face.mp4")
    assert (pose.width, pose.height, pose.frames, pose.fps) == (192, 336, 12, 30)
    assert (face.width, face.height, face.frames) == (512, 512, 12)
    drawn = frames_of(result.output / "src_pose.mp4")
    assert all((frame == (255, 0, 0)).all(axis=-1).any() for frame in drawn), "the nose is pure red: nothing was lost"
    assert np.asarray(Image.open(result.output / "src_ref.png")).shape == (160, 90, 3)
    saved = PreprocessResult.model_validate_json((result.output / "preprocess.json").read_text())
    assert saved == result
    assert Image.open(result.contact_sheet).width > 480
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["clips", "driving.mp4", "keypoints.npz"]


def test_makes_the_clips_of_replace_mode_from_a_mask_video(tmp_path, reference):
    poses = walk(6)
    path = driving(tmp_path / "job", poses)
    masks = [np.zeros((120, 160), np.uint8) for _ in poses]
    for mask, pose in zip(masks, poses):
        mask[20:100, int(pose.body[1, 0]) - 10 : int(pose.body[1, 0]) + 10] = 255
    write_lossless(path.parent / "mask.mp4", masks, Fraction(30), "gray")
    result = run(path, reference, mode="replace")
    assert result.masks == "file" and result.retarget == "off"
    mask = frames_of(result.output / "src_mask.mp4")
    ground = frames_of(result.output / "src_bg.mp4")
    assert mask.shape == ground.shape == (6, 208, 288, 3)
    assert set(np.unique(mask)) == {0, 255}
    assert ground[mask > 0].max() <= 2 and ground[mask == 0].mean() > 60
    for each in mask[..., 0] > 0:
        rows, columns = np.flatnonzero(each.any(axis=1)), np.flatnonzero(each.any(axis=0))
        assert each[rows[0] : rows[-1], columns[0] : columns[-1]].all()


def test_an_empty_mask_is_an_error_or_the_box(tmp_path, reference):
    path = driving(tmp_path / "job", walk(5))
    write_lossless(path.parent / "mask.mp4", [np.zeros((120, 160), np.uint8)] * 5, Fraction(30), "gray")
    with pytest.raises(BadInput, match=r"mask of frame 0 \(0\.00 s.*empty_mask: box"):
        run(path, reference, mode="replace")
    assert not (path.parent / "clips").exists()
    result = run(path, reference, mode="replace", empty_mask="box")
    assert result.warnings[-1].frames == [(0, 4)]
    assert (frames_of(result.output / "src_mask.mp4") > 0).mean() > 0.05


def test_follows_vitpose_and_fits_the_motion_to_the_picture(tmp_path):
    size = (208, 288)
    pose = figure(size, 250, (104, 280))
    folder = tmp_path / "job"
    folder.mkdir()
    write_lossless(folder / "driving.mp4", [picture_of(pose)] * 10, Fraction(30))
    Image.fromarray(picture_of(pose)).save(folder / "reference.png")
    snapshot = stub_snapshot(tmp_path / "snapshot", pose)
    for rule in ("robust", "published"):
        result = run(folder / "driving.mp4", folder / "reference.png", snapshot, retarget=rule)
        assert result.estimator == "vitpose" and result.retarget == rule
        assert result.warnings == []
    assert (result.width, result.height) == size


def lowest_row(result: PreprocessResult) -> int:
    """The lowest drawn row of the first frame, px."""
    return int(np.flatnonzero(frames_of(result.output / "src_pose.mp4")[0].any(axis=(1, 2)))[-1])


def test_keypoints_of_the_picture_come_from_a_file_too(tmp_path, reference):
    path = driving(tmp_path / "job", walk(5))
    result = run(path, reference)
    assert result.retarget == "off" and not (path.parent / "models").exists(), "nothing is looked for or fetched"
    (told,) = [notice.text for notice in result.warnings]
    assert re.search(
        r"off: the keypoints for reference\.png are missing; expected reference_keypoints\.npz or .*\.json", told
    )
    unfitted = lowest_row(result)

    beside = reference.with_name("reference_keypoints.json")
    beside.write_text(json.dumps({"people": []}))
    assert "no person was found in the reference picture" in run(path, reference).warnings[0].text
    pose = figure((90, 160), 140, (45, 150))
    beside.write_text(json.dumps({"people": [{"pose_keypoints_2d": whole(pose)}]}))
    result = run(path, reference)
    assert result.retarget == "robust" and result.warnings == []
    assert abs(lowest_row(result) - 150 / 160 * result.height) < 4 < abs(lowest_row(result) - unfitted)

    beside.write_text("{}")
    with pytest.raises(BadInput, match=r"reference_keypoints\.json: frame 0 has no list of people"):
        run(path, reference)


def test_gaps_and_missing_faces_are_filled_and_reported(tmp_path, reference):
    poses = walk(40)
    path = driving(tmp_path / "job", poses)
    for t in (5, 6, *range(20, 38)):
        poses[t] = type(poses[t]).empty(poses[t].size)
    poses[10] = replace(poses[10], face=np.full((68, 3), np.nan))
    save_keypoints(path.parent / "keypoints.npz", poses)
    result = run(path, reference, retarget="off", max_gap=0.2)
    told = {notice.text.split(";")[-1].strip(): notice.frames for notice in result.warnings}
    assert told["the skeleton bridges the gap"] == [(5, 6)]
    assert told["no skeleton is drawn"] == [(20, 37)]
    assert (10, 10) in told["its position is taken from the neighbouring frames"]
    drawn = frames_of(result.output / "src_pose.mp4").any(axis=(1, 2, 3))
    assert [t for t in range(40) if not drawn[t]] == list(range(20, 38))
    assert all(face.std() > 1 for face in frames_of(result.output / "src_face.mp4"))


def test_jumps_and_empty_masks_are_reported_with_their_frames(tmp_path, reference):
    poses = walk(12)
    moved = [pose.moved((1, 1), (0, -25 if t >= 6 else 0), pose.size) for t, pose in enumerate(poses)]
    moved[9:11] = [type(poses[0]).empty(poses[0].size)] * 2
    path = driving(tmp_path / "job", poses)
    save_keypoints(path.parent / "keypoints.npz", moved)
    masks = [np.full((120, 160), 0 if t in (9, 10) else 255, np.uint8) for t in range(12)]
    write_lossless(path.parent / "mask.mp4", masks, Fraction(30), "gray")
    result = run(path, reference, mode="replace", max_gap=0)
    told = {notice.text: notice.frames for notice in result.warnings}
    assert told["the skeleton jumps from the frame before, perhaps to another person"] == [(6, 6)]
    assert told["the mask is empty, so nothing is replaced"] == [(9, 10)]
    assert told["the person was not found for longer than max_gap; no skeleton is drawn"] == [(9, 10)]


def test_sound_is_kept_from_the_start_on(tmp_path, reference):
    path = driving(tmp_path / "job", walk(60))
    silent = path.with_name("silent.mp4")
    path.rename(silent)
    with av.open(str(silent)) as source, av.open(str(path), "w") as output:
        stream = output.add_stream_from_template(source.streams.video[0])
        track = output.add_stream("aac", rate=48000, layout="mono")
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                output.mux(packet)
        tone = (np.sin(np.arange(96000) / 20) * (np.arange(96000) > 48000) * 0.5).astype(np.float32)
        for start in range(0, 96000, 960):
            piece = av.AudioFrame.from_ndarray(tone[None, start : start + 960], format="fltp", layout="mono")
            piece.sample_rate, piece.pts, piece.time_base = 48000, start, Fraction(1, 48000)
            output.mux(track.encode(piece))
        output.mux(track.encode(None))
    silent.unlink()
    result = run(path, reference, retarget="off", start=0.5, end=1.5)
    assert result.has_audio and result.frames == 30
    with av.open(str(result.output / "src_pose.mp4")) as clip:
        sound = np.concatenate([frame.to_ndarray()[0] for frame in clip.decode(audio=0)])
    assert 0.9 < len(sound) / 48000 < 1.1
    begins = np.flatnonzero(np.abs(sound) > 0.1)[0] / 48000
    assert begins == pytest.approx(0.5, abs=0.06)


def test_progress_is_reported_for_both_passes(tmp_path, reference):
    seen = []
    path = driving(tmp_path / "job", walk(5))
    settings = PreprocessSettings(resolution_area=AREA, retarget="off")
    preprocess(
        path,
        reference,
        tmp_path / "clips",
        settings,
        snapshot=None,
        models_root=tmp_path,
        progress=lambda *step: seen.append(step),
    )
    assert seen[0][0] == "keypoints" and seen[-1] == ("clips", 5, 5)
    assert [step for step in seen if step[0] == "clips"] == [("clips", i, 5) for i in range(1, 6)]


def test_no_person_and_a_person_in_few_frames_are_errors(tmp_path, reference):
    poses = walk(10)
    path = driving(tmp_path / "job", poses)
    nobody = type(poses[0]).empty(poses[0].size)
    save_keypoints(path.parent / "keypoints.npz", [nobody] * 10)
    with pytest.raises(BadInput, match=r"driving\.mp4: no person was found in any of 10 frames"):
        run(path, reference)
    save_keypoints(path.parent / "keypoints.npz", [*poses[:3], *[nobody] * 7])
    with pytest.raises(BadInput, match=r"found in only 3 of 10 frames, not in 3-9"):
        run(path, reference)


def test_named_estimators_and_masks_must_be_there(tmp_path, reference):
    path = driving(tmp_path / "job", walk(4))
    (path.parent / "keypoints.npz").unlink()
    with pytest.raises(BadInput, match=r"needs keypoints\.npz, keypoints\.json or keypoints/"):
        run(path, reference, estimator="file")
    with pytest.raises(BadInput, match="needs a snapshot with process_checkpoint"):
        run(path, reference, estimator="vitpose")
    with pytest.raises(BadInput, match="could not download"):
        run(path, reference)
    with pytest.raises(BadInput, match=r"pose_detection\.tflite is missing.*mediapipe==0\.10\.21"):
        run(path, reference, light_models=tmp_path)
    with pytest.raises(BadInput, match=r"sam2_hiera_large\.pt is missing.*ModelScope"):
        run(driving(tmp_path / "other", walk(4)), reference, mode="replace", masks="sam2")


def test_bad_videos_and_pictures_are_named(tmp_path, reference):
    path = driving(tmp_path / "job", walk(4))
    (tmp_path / "reference.jpg").write_bytes(b"")
    with pytest.raises(BadInput, match=r"reference\.jpg"):
        run(path, tmp_path / "reference.jpg")
    whole = path.read_bytes()
    path.write_bytes(b"")
    with pytest.raises(BadInput, match=r"driving\.mp4.*empty"):
        run(path, reference)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadInput, match=r"driving\.mp4"):
        run(path, reference)


def test_truncated_ok_uses_a_video_up_to_the_cut(tmp_path, reference):
    path = driving(tmp_path / "job", walk(40))
    with av.open(str(path)) as source, av.open(str(path.with_suffix(".mkv")), "w") as output:
        stream = output.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                output.mux(packet)
    cut = path.with_suffix(".mkv")
    cut.write_bytes(cut.read_bytes()[: int(cut.stat().st_size * 0.6)])
    with pytest.raises(BadInput, match="truncated"):
        run(cut, reference, retarget="off")
    save_keypoints(path.parent / "keypoints.npz", walk(40), fps=30)
    result = run(cut, reference, retarget="off", truncated_ok=True)
    assert 10 < result.frames < 30
    assert "truncated" in result.warnings[0].text


def test_a_failure_leaves_the_older_clips(tmp_path, reference):
    path = driving(tmp_path / "job", walk(4))
    run(path, reference, retarget="off")
    before = (path.parent / "clips/src_pose.mp4").read_bytes()
    write_lossless(path.parent / "mask.mp4", [np.zeros((120, 160), np.uint8)] * 4, Fraction(30), "gray")
    with pytest.raises(BadInput, match="empty"):
        run(path, reference, mode="replace")
    assert (path.parent / "clips/src_pose.mp4").read_bytes() == before
    assert sorted(entry.name for entry in path.parent.iterdir()) == [
        "clips",
        "driving.mp4",
        "keypoints.npz",
        "mask.mp4",
    ]


def test_the_result_is_json(tmp_path, reference):
    result = run(driving(tmp_path / "job", walk(4)), reference, retarget="off")
    assert json.loads(result.model_dump_json())["frames"] == 4


def test_side_by_side_shows_everything(tmp_path, reference):
    path = driving(tmp_path / "job", walk(5))
    result = run(path, reference, retarget="off")
    alone = probe(write_side_by_side(result.output, tmp_path / "alone.mp4"))
    assert (alone.width, alone.height, alone.frames) == (206 + 360, 360, 5)
    beside = probe(write_side_by_side(result.output, tmp_path / "beside.mp4", path))
    assert beside.width == 480 + 206 + 360
    (result.output / "src_face.mp4").unlink()
    with pytest.raises(BadInput, match=r"src_face\.mp4"):
        write_side_by_side(result.output, tmp_path / "alone.mp4")


def two_people(folder: Path, frames: int) -> tuple[Path, list, list]:
    """A small person walks in from the left, a large one stands on the right."""
    size = (320, 240)
    small = [figure(size, 90, (60 + 2 * i, 200)) for i in range(frames)]
    large = [figure(size, 180, (250, 220))] * frames
    folder.mkdir(parents=True)
    pictures = [np.maximum(picture_of(a), picture_of(b)) for a, b in zip(small, large)]
    write_lossless(folder / "driving.mp4", pictures, Fraction(30))
    people = [
        {"people": [{"pose_keypoints_2d": whole(a)}, {"pose_keypoints_2d": whole(b)}]} for a, b in zip(small, large)
    ]
    (folder / "keypoints.json").write_text(json.dumps(people))
    return folder / "driving.mp4", small, large


def whole(pose) -> list[float]:
    return pose.body.ravel().tolist()


@pytest.mark.parametrize(
    ("person", "which"), [("largest", 1), ("index:2", 0), ("point:60,150", 0), ("box:0.6,0.1,1,1", 1)]
)
def test_the_chosen_person_is_followed(tmp_path, reference, person, which):
    path, *walks = two_people(tmp_path / "job", 10)
    result = run(path, reference, mode="replace", person=person, empty_mask="box", mask_iterations=0, **files(path))
    assert any(notice.text.startswith("several people") for notice in result.warnings)
    mask = frames_of(result.output / "src_mask.mp4")[5, ..., 0] > 0
    columns = np.flatnonzero(mask.any(axis=0))
    expected = walks[which][5].body[1, 0] / 320 * result.width
    assert abs((columns[0] + columns[-1]) / 2 - expected) < 8


def files(path: Path) -> dict[str, str]:
    """An empty mask video, so that the mask clip shows the box of the followed person."""
    write_lossless(path.parent / "mask.mp4", [np.zeros((240, 320), np.uint8)] * 10, Fraction(30), "gray")
    return {"masks": "file"}


def test_the_error_for_a_choice_without_a_person(tmp_path, reference):
    path, *_ = two_people(tmp_path / "job", 4)
    with pytest.raises(BadInput, match=r"but the point lies inside no person; frame 0 .* shows 1 in box:2"):
        run(path, reference, person="point:5,5")
    with pytest.raises(BadInput, match=r"'index:3', but no frame shows more than 2"):
        run(path, reference, person="index:3")
