import shutil
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from figures import picture_of, walk
from media import moving_frames
from PIL import Image

from wan_orchestration.defs.clips import checks as clips_checks
from wan_orchestration.defs.videos.checks import CHECKS, inspect, judge
from wan_orchestration.jobs.clips import check_clips
from wan_orchestration.jobs.folder import Job
from wan_orchestration.preprocess.drawing import draw_skeleton
from wan_orchestration.protocol.messages import Quality, Result
from wan_orchestration.settings.checks import CheckSettings
from wan_orchestration.video.reader import iter_frames, probe
from wan_orchestration.video.writer import write_lossless, write_segment

FRAMES, HEIGHT, WIDTH, FPS = 6, 64, 96, Fraction(25)


def pictures(count=FRAMES, height=HEIGHT, width=WIDTH) -> list[np.ndarray]:
    ramp = np.linspace(0, 255, width, dtype=np.uint8)
    return [np.broadcast_to(np.roll(ramp, 3 * i)[None, :, None], (height, width, 3)).copy() for i in range(count)]


@pytest.fixture
def made(tmp_path) -> tuple[Path, Path]:
    """A good result's folder and its driving clip."""
    folder = tmp_path / "video"
    folder.mkdir()
    write_segment(folder / "video.mp4", pictures(), FPS)
    shutil.copy(folder / "video.mp4", tmp_path / "src_pose.mp4")
    result = Result(job_id="job", status="succeeded", created_at=datetime.now(UTC), finite=True)
    (folder / "result.json").write_text(result.model_dump_json())
    return folder, tmp_path / "src_pose.mp4"


def results(folder: Path, driving: Path) -> dict:
    return inspect(folder / "video.mp4", probe(driving)) | judge(Result.read(folder / "result.json"), CheckSettings())


def failed(folder: Path, driving: Path) -> set[str]:
    found = results(folder, driving)
    assert set(found) == set(CHECKS)
    assert all(result.description for result in found.values() if not result.passed)
    return {name for name, result in found.items() if not result.passed}


def test_a_good_video_passes(made):
    assert failed(*made) == set()


def test_a_short_video(made):
    write_segment(made[0] / "video.mp4", pictures(FRAMES - 1), FPS)
    assert failed(*made) == {"length"}


def test_a_slow_video(made):
    write_segment(made[0] / "video.mp4", pictures(), FPS / 2)
    assert failed(*made) == {"length"}


def test_another_size(made):
    write_segment(made[0] / "video.mp4", pictures(width=WIDTH + 16), FPS)
    assert failed(*made) == {"size"}


def test_a_blank_frame(made):
    frames = pictures()
    frames[3][:] = 0
    write_segment(made[0] / "video.mp4", frames, FPS)
    found = results(*made)
    assert failed(*made) == {"not_blank"}
    assert "the first is frame 3" in found["not_blank"].description


def test_damaged_data(made):
    video = made[0] / "video.mp4"
    data = bytearray(video.read_bytes())
    start = data.index(b"mdat") + 40
    data[start : start + (len(data) - start) // 2] = b"\x00" * ((len(data) - start) // 2)
    video.write_bytes(data)
    assert "decodable" in failed(*made)


def test_no_video(made):
    (made[0] / "video.mp4").unlink()
    assert failed(*made) == {"decodable", "length", "size", "not_blank"}


def test_nan(made):
    result = Result(job_id="job", status="succeeded", created_at=datetime.now(UTC), finite=False)
    (made[0] / "result.json").write_text(result.model_dump_json())
    assert failed(*made) == {"finite"}
    (made[0] / "result.json").unlink()
    assert failed(*made) == {"finite"}


def result(**quality) -> Result:
    good = {"frozen_frames": 1, "colour_drift": [0.0, 2.0], "seam": 1.0, "pose_similarity": 0.9, "identity": 0.8}
    return Result(
        job_id="job",
        status="succeeded",
        created_at=datetime.now(UTC),
        fps=10,
        finite=True,
        quality=Quality(**good | quality),
    )


@pytest.mark.parametrize(
    "quality, check",
    [
        ({}, set()),
        ({"frozen_frames": 6}, {"not_frozen"}),
        ({"colour_drift": [0.0, 2.0, 9.0]}, {"colour_drift"}),
        ({"seam": 2.5, "seam_frame": 77}, {"seams"}),
        ({"pose_similarity": 0.2}, {"pose"}),
        ({"identity": 0.1}, {"identity"}),
        ({"identity": None, "pose_similarity": None, "not_measured": {"identity": "why"}}, set()),
    ],
)
def test_quality_is_compared_with_the_settings(quality, check, monkeypatch):
    found = judge(result(**quality), CheckSettings())
    assert {name for name, one in found.items() if not one.passed} == check
    if quality.get("identity", "") is None:
        assert found["identity"].description == "not measured: why"
    for name in ("FROZEN_SECONDS", "COLOUR_DRIFT", "SEAM"):
        monkeypatch.setenv(f"WAN_CHECK_{name}", "100")
    for name in ("POSE", "IDENTITY"):
        monkeypatch.setenv(f"WAN_CHECK_{name}", "0")
    assert all(one.passed for one in judge(result(**quality), CheckSettings()).values())


@pytest.fixture
def good_clips(tmp_path) -> Path:
    """Ready clips of a skeleton that walks, a face and a mask."""
    folder = tmp_path / "jobs" / "clips"
    folder.mkdir(parents=True)
    poses = walk(8, (272, 256))
    black = np.zeros((256, 272, 3), np.uint8)
    write_lossless(folder / "src_pose.mp4", [draw_skeleton(black.copy(), pose) for pose in poses], FPS)
    write_lossless(folder / "src_face.mp4", moving_frames(8, 512, 512), FPS)
    write_lossless(folder / "src_bg.mp4", [black] * 8, FPS)
    mask = np.zeros((256, 272), np.uint8)
    mask[50:100, 50:100] = 255
    write_lossless(folder / "src_mask.mp4", [mask] * 8, FPS, "gray")
    Image.fromarray(picture_of(poses[0])).save(folder / "src_ref.png")
    (folder / "job.yaml").write_text("mode: replace")
    return folder


def failed_clips(folder: Path) -> set[str]:
    job = Job.open(folder)
    found = clips_checks.inspect(check_clips(folder, job.generate_settings().mode), job.check_settings())
    assert set(found) == set(clips_checks.CHECKS)
    return {name for name, result in found.items() if not result.passed}


def test_good_clips_pass(good_clips):
    assert failed_clips(good_clips) == set()


def test_bad_clips_fail(good_clips):
    def frames(name: str) -> list[np.ndarray]:
        return list(iter_frames(good_clips / name))

    skeletons = frames("src_pose.mp4")
    write_lossless(
        good_clips / "src_pose.mp4", [*skeletons[:4], *[np.roll(frame, 80, axis=1) for frame in skeletons[4:]]], FPS
    )
    assert failed_clips(good_clips) == {"no_jumps"}
    write_lossless(good_clips / "src_pose.mp4", [*skeletons[:4], *[frame * 0 for frame in skeletons[4:]]], FPS)
    assert failed_clips(good_clips) == {"skeleton"}
    write_lossless(good_clips / "src_pose.mp4", skeletons, Fraction(5))
    assert failed_clips(good_clips) == {"rate"}
    write_lossless(good_clips / "src_pose.mp4", skeletons, FPS)

    faces = frames("src_face.mp4")
    write_lossless(good_clips / "src_face.mp4", [*faces[:4], *[face * 0 for face in faces[4:]]], FPS)
    assert failed_clips(good_clips) == {"face"}
    write_lossless(good_clips / "src_face.mp4", faces[:6], FPS)
    assert failed_clips(good_clips) == {"same_length"}
    write_lossless(good_clips / "src_face.mp4", faces, FPS)

    masks = [frame[..., 0] for frame in frames("src_mask.mp4")]
    write_lossless(good_clips / "src_mask.mp4", [*masks[:7], masks[7] * 0], FPS, "gray")
    assert failed_clips(good_clips) == {"mask"}
    write_lossless(good_clips / "src_mask.mp4", masks, FPS, "gray")

    joints = np.stack([pose.body for pose in walk(8, (272, 256))])
    np.savez(good_clips / "src_pose.npz", body=joints)
    assert failed_clips(good_clips) == set()
    joints[..., 2] = 0.3
    np.savez(good_clips / "src_pose.npz", body=joints)
    assert failed_clips(good_clips) == {"confidence"}


def test_small_clips_fail(make_job):
    assert "resolution" in failed_clips(make_job("small"))
