"""The demo's model makes a video through the whole Dagster path, and the video shows what each of its inputs decides.

Then inputs are replaced one by one by another job's, and the video shows the difference.
"""

import shutil
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import numpy as np
import pytest

from mini import measure
from mini.figures import PALE, Figure
from mini.jobs import write_clips
from mini.scene import Scene, scene
from wan_orchestration.generate.runner import run
from wan_orchestration.infer import TerminalReporter
from wan_orchestration.jobs.clips import check_clips
from wan_orchestration.protocol.messages import Request, Task
from wan_orchestration.settings.environment import environment
from wan_orchestration.settings.generate import GenerateSettings
from wan_orchestration.video.reader import FrameReader
from wan_orchestration.video.writer import write_lossless

WEIGHTS = Path(__file__).parents[2] / "data" / "models" / "wan-animate-mini"
FRAMES = 17
SETTINGS = {"clip_len": FRAMES, "sampling_steps": 6}


LIMBS, OPENING, BACKGROUND = 0.03, 0.3, 26.0
"""In heights of the picture; as a share of the true change; in dB. The right video has 0.015, 0.58 and 33."""


@pytest.fixture
def performance() -> Scene:
    """A person whose mouth opens, and the character that replaces this person."""
    one = scene(seed=7, frames=FRAMES)
    act = replace(one.driving.act, mouth=np.clip(np.linspace(-0.5, 1.5, FRAMES), 0, 1), smile=np.zeros(FRAMES))
    return replace(one, driving=Figure(one.driving.build, act))


def faults(video: np.ndarray, performance: Scene, other: Scene) -> set[str]:
    """The inputs that the video does not agree with."""
    truth = np.stack([performance.truth(t, replace=True) for t in performance.frames])
    look, found = performance.character, set()
    if measure.limb_errors(video, truth, look).mean() > LIMBS:
        found.add("src_pose.mp4")
    if not measure.wears(video, truth, look, other.character):
        found.add("src_ref.png")
    if opening(video, performance) < OPENING * opening(truth, performance):
        found.add("src_face.mp4")
    outside = np.stack([performance.mask(t) for t in performance.frames]) == 0
    if measure.psnr(video[outside], truth[outside]) < BACKGROUND:
        found.add("src_bg.mp4")
    return found


def opening(video: np.ndarray, performance: Scene) -> float:
    """How much darker the mouth is at the end than at the beginning."""
    levels = []
    for t in (*range(4), *range(-4, 0)):
        x, y = performance.driving.pose(t % FRAMES, performance.size).face[48:, :2].mean(0).astype(int)
        levels.append(video[t, y - 2 : y + 3, x - 3 : x + 4, 1].mean())
    return float(np.mean(levels[:4]) - np.mean(levels[4:]))


def read(path: Path) -> np.ndarray:
    with FrameReader(path) as reader:
        return reader.read(range(FRAMES))


def test_a_video_shows_what_its_inputs_say(performance, data_root, materialize, monkeypatch, tmp_path):
    other = scene(seed=11, frames=FRAMES)
    other = replace(other, driver=replace(other.driver, wall=PALE[0]))
    right = write_clips(data_root / "jobs" / "right", performance, replaced=True)
    monkeypatch.setenv("WAN_CHECKPOINT_DIR", str(WEIGHTS))
    environment.cache_clear()
    assert materialize("preprocessed_clips", key="right").success
    generated = materialize("generated_video", key="right", config={"generated_video": {"config": SETTINGS}})
    assert generated.success
    assert not [event for event in generated.all_events if event.asset_key == dg.AssetKey("preprocessed_clips")], (
        "clips that are there are not made again"
    )
    assert faults(read(data_root / "videos" / "right" / "video.mp4"), performance, other) == set()

    swapped = write_clips(tmp_path / "other", other, replaced=True)
    backwards = read(right / "src_face.mp4")[::-1]
    write_lossless(swapped / "src_face.mp4", backwards, 30, "yuv444")
    tasks = []
    for name in ("src_pose.mp4", "src_ref.png", "src_face.mp4", "src_bg.mp4"):
        clips = shutil.copytree(right, tmp_path / "swapped" / name)
        shutil.copy(swapped / name, clips)
        if name == "src_bg.mp4":
            # The hole in the background has the mask's shape, and this model hardly uses the mask itself.
            shutil.copy(swapped / "src_mask.mp4", clips)
        tasks.append(
            Task(
                job_id=name,
                clips=check_clips(clips, "replace"),
                output=tmp_path / "videos" / name,
                settings=GenerateSettings(mode="replace", **SETTINGS),
                created_at=datetime.now(UTC),
            )
        )
    for result in run([(Request(snapshot=WEIGHTS, revision=None, tasks=tasks), TerminalReporter())]):
        assert result.status == "succeeded", result.error
        assert result.job_id in faults(read(tmp_path / "videos" / result.job_id / "video.mp4"), performance, other)
