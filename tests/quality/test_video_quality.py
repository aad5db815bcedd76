"""The pose that is followed, the preview, and all of it on a small video."""

import numpy as np
import pytest
from figures import picture_of, walk
from PIL import Image
from PIL.WebPImagePlugin import WebPImageFile

from wan_orchestration.errors import BadInput
from wan_orchestration.jobs.clips import check_clips
from wan_orchestration.preprocess.estimators.base import Detection
from wan_orchestration.quality.pose import similarity
from wan_orchestration.quality.thumbnails import MOST_BYTES, contact_sheet, write_preview
from wan_orchestration.quality.video_quality import VideoSample, measure
from wan_orchestration.video.writer import write_segment


class Knows:
    """An estimator that finds the poses that it was given, and in the reference picture a person."""

    name, batch, smooth = "knows", 1, 0.0

    def __init__(self, poses, reference=(80, 60)):
        self.poses, self.reference = poses, reference

    def detect(self, frames):
        seen = [bool(self.poses) or frame.pixels.shape[:2] == self.reference for frame in frames]
        return [[Detection((0, 0, 1, 1), 1.0)] if one else [] for one in seen]

    def estimate(self, frames, people):
        return [self.poses[frame.source] for frame in frames]


def joints(poses) -> np.ndarray:
    return np.stack([pose.body for pose in poses]).astype(np.float32)


def test_object_keypoint_similarity():
    body = walk(1)[0].body
    assert similarity(body, body) == pytest.approx(1)
    assert similarity(body, None) == 0
    off = [similarity(body, body + np.array([pixels, 0, 0])) for pixels in (1, 4, 16, 64)]
    assert off == sorted(off, reverse=True) and off[0] > 0.9 and off[-1] < 0.1
    unsure = body.copy()
    unsure[:10, 2] = 0.1
    assert similarity(body, unsure) == pytest.approx(0.5)
    assert similarity(unsure * 0, body) is None


@pytest.fixture
def look(make_job, tmp_path):
    """Measures a video of a walking figure; its clips say that it was to walk like that."""
    folder = make_job(frames=12, height=128, width=160)
    wanted = walk(12, (160, 128))
    np.savez(folder / "src_pose.npz", body=joints(wanted))
    write_segment(tmp_path / "video.mp4", map(picture_of, wanted), 30)

    def run(estimator, likeness=lambda pictures, reference: 0.75):
        def opened():
            if estimator is None:
                raise BadInput("no estimator is there")
            return estimator

        clips = check_clips(folder, "animate")
        return measure(tmp_path / "video.mp4", clips, [9, 3], tmp_path / "preview.webp", opened, likeness)

    return run


def test_the_pose_that_was_wanted_or_another(look):
    wanted = walk(12, (160, 128))
    assert look(Knows(wanted)).pose_similarity == pytest.approx(1, abs=1e-4)
    assert look(Knows(wanted[::-1])).pose_similarity < 0.8
    assert look(Knows([])).pose_similarity == 0


def test_what_cannot_be_measured_is_said(look):
    quality = look(None, None)
    assert quality.pose_similarity is None and quality.identity is None
    assert quality.not_measured["pose_similarity"] == "no estimator is there" and "identity" in quality.not_measured
    assert len(quality.colour_drift) == 2
    quality = look(Knows([], reference=None))
    assert quality.pose_similarity is None
    assert quality.not_measured["pose_similarity"] == "knows finds no person in the reference picture"


def test_the_subject_is_cut_out():
    frame, pose = np.zeros((100, 200, 3), np.uint8), np.zeros((100, 200, 3), np.uint8)
    assert VideoSample(0, frame, pose).subject().shape == (100, 200, 3)
    pose[40:60, 100:120] = 255
    height, width, _ = VideoSample(0, frame, pose).subject().shape
    assert 30 <= height <= 45 and 30 <= width <= 45


def test_the_preview_is_small_whatever_it_shows(look, tmp_path):
    look(None, None)
    with Image.open(tmp_path / "preview.webp") as image:
        assert isinstance(image, WebPImageFile) and image.n_frames == 12 and image.height == 160
    noise = np.random.default_rng(0).integers(0, 256, (24, 160, 600, 3), dtype=np.uint8)
    write_preview(tmp_path / "noise.webp", list(noise), 2.0)
    assert (tmp_path / "noise.webp").stat().st_size <= MOST_BYTES


@pytest.mark.parametrize("mode, frames, size", [("animate", 20, (480, 1200)), ("replace", 3, (480, 880))])
def test_a_contact_sheet_shows_every_clip(make_job, mode, frames, size):
    folder = make_job(mode=mode, frames=frames)
    assert contact_sheet(check_clips(folder, mode)).shape == (*size, 3)
