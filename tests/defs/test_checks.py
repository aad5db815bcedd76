import shutil
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from wan_orchestration.defs.videos.checks import CHECKS, inspect
from wan_orchestration.messages import Result
from wan_orchestration.video import write_segment

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


def failed(folder: Path, driving: Path) -> set[str]:
    findings = inspect(folder, driving)
    assert set(findings) == set(CHECKS)
    assert all(finding.reason for finding in findings.values() if not finding.passed)
    return {name for name, finding in findings.items() if not finding.passed}


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
    findings = inspect(*made)
    assert failed(*made) == {"not_blank"}
    assert "the first is frame 3" in findings["not_blank"].reason


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
