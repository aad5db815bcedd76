from fractions import Fraction

import numpy as np
import pytest

from wan_orchestration.preprocess.clip_writer import ClipWriter
from wan_orchestration.video.reader import iter_frames, probe


@pytest.mark.parametrize(("pixels", "tolerance"), [("rgb", 0), ("yuv444", 2), ("gray", 0)])
def test_clips_decode_to_the_written_frames(tmp_path, pixels, tolerance):
    shape = (12, 48, 64) if pixels == "gray" else (12, 48, 64, 3)
    frames = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    with ClipWriter(tmp_path / "clip.mp4", Fraction(30000, 1001), pixels) as clip:
        for frame in frames:
            clip.write(frame)
    assert probe(tmp_path / "clip.mp4").fps == Fraction(30000, 1001)
    read = np.stack(list(iter_frames(tmp_path / "clip.mp4"))).astype(int)
    expected = frames[..., None] if pixels == "gray" else frames
    assert np.abs(read - expected).max() <= tolerance


def test_a_failure_leaves_nothing_behind(tmp_path):
    with pytest.raises(RuntimeError, match="stop"), ClipWriter(tmp_path / "clip.mp4", Fraction(30), "rgb") as clip:
        for _ in range(10):
            clip.write(np.zeros((48, 64, 3), np.uint8))
        raise RuntimeError("stop")
    assert list(tmp_path.iterdir()) == []


def test_the_encoders_own_failure_is_raised(tmp_path):
    with pytest.raises(FileExistsError), ClipWriter(tmp_path / "file/clip.mp4", Fraction(30), "rgb") as clip:
        (tmp_path / "file").touch()
        for _ in range(100):
            clip.write(np.zeros((48, 64, 3), np.uint8))
