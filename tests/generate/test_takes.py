"""Segments that came out badly are made again, and the best take is kept."""

import json
import signal
import subprocess
import sys
import time
import weakref
from datetime import UTC, datetime

import numpy as np
import pytest
from media import add_character, moving_frames
from recorder import Recorder

from wan_orchestration.defs.videos.checks import judge
from wan_orchestration.defs.videos.metadata import segments_table
from wan_orchestration.engine.memory.placement import Placement
from wan_orchestration.families.animate.animator import Animator
from wan_orchestration.generate import fallback, runner
from wan_orchestration.generate.segments import seed_of
from wan_orchestration.generate.takes import TakeKeeper
from wan_orchestration.jobs.clips import check_clips
from wan_orchestration.protocol.messages import Progress, Request, Result, SegmentMeasures, Take, Task
from wan_orchestration.quality.segment_quality import SegmentMeter, best, misses
from wan_orchestration.settings.checks import CheckSettings
from wan_orchestration.settings.generate import GenerateSettings

LENIENT = CheckSettings(frozen_seconds=99, colour_drift=40, seam=1000, pose=0, identity=-1)
"""Random weights meet these thresholds, unless a fault is made."""


@pytest.fixture
def make_task(make_job, tmp_path):
    """A task of three segments."""

    def make(key, retakes=1):
        return Task(
            job_id=key,
            clips=check_clips(make_job(key, frames=11), "animate"),
            output=tmp_path / "videos" / key,
            settings=GenerateSettings(clip_len=5, sampling_steps=1, retakes=retakes),
            created_at=datetime.now(UTC),
            save_frames=tmp_path / f"{key}.npz",
            checks=LENIENT,
        )

    return make


@pytest.fixture
def spoil(monkeypatch):
    """Tints takes of the second segment. Returns the seeds with which segments were made; None: in sequence."""

    def start(*shares, stop_at=None, error: Exception | None = None):
        def animate(self, conditions, on_step, seed=None, whole=Animator.animate):
            assert not any(kept() for kept in videos), "an earlier take is still in memory"
            seeds.append(seed)
            if error and len(seeds) - 1 == stop_at:
                raise error
            video = whole(self, conditions, on_step, seed)
            bad = dict(zip([None, *(seed_of(42, 1, take) for take in (1, 2))], shares))
            second = seed is not None or sum(one is None for one in seeds) == 2 - resumed
            return video * (1 - bad[seed]) + bad[seed] if second and seed in bad else video

        def receive(self, segment, whole=TakeKeeper.receive):
            videos.append(weakref.ref(segment.video))
            return whole(self, segment)

        seeds, videos, resumed = [], [], start.resumed
        monkeypatch.setattr(Animator, "animate", animate)
        monkeypatch.setattr(TakeKeeper, "receive", receive)
        return seeds

    start.resumed = 0
    yield start
    monkeypatch.undo()


def run(snapshot, task):
    recorder = Recorder()
    [result] = runner.run([(Request(snapshot=snapshot, tasks=[task]), recorder)])
    return result, recorder


def frames(task):
    return np.load(task.save_frames)["frames"]


def test_a_bad_segment_is_made_again_and_replaced(tiny_snapshot, make_task, spoil):
    plain = make_task("plain", retakes=0)
    result, _ = run(tiny_snapshot, plain)
    assert [len(segment.takes) for segment in result.made_segments] == [1, 1, 1]
    assert all(segment.kept.measures.identity is not None for segment in result.made_segments), "it is measured"
    seeds = spoil(0.9, 0.0)
    task = make_task("again")
    result, recorder = run(tiny_snapshot, task)
    assert result.error is None and seeds == [None, None, seed_of(42, 1, 1), None]
    first, second, third = result.made_segments
    assert [len(segment.takes) for segment in (first, second, third)] == [1, 2, 1]
    assert list(second.takes[0].misses) == ["colour_drift"] and second.takes[1].misses == {}
    assert [take.kept for take in second.takes] == [False, True] and second.kept.seed == seeds[2]
    assert second.seconds == pytest.approx(sum(take.seconds for take in second.takes))
    assert np.array_equal(frames(task)[:, :5], frames(plain)[:, :5])
    assert np.abs(frames(task)[:, 5:9] - frames(plain)[:, 5:9]).mean() < 0.5, "the tint is gone"
    assert any("segment 2 of 3, take 1 misses colour_drift by" in line for line in recorder.lines)
    words = list(dict.fromkeys(step.words for step in recorder.steps if step.phase == "denoising"))
    assert "segment 2 of 3, take 2, step 1 of 1" in words
    fractions = [step.fraction for step in recorder.steps]
    assert fractions == sorted(fractions) and fractions[-1] == 1
    told = [(one.segment, len(one.takes)) for one in recorder.segments]
    assert told == [(1, 1), (2, 2), (3, 1)]
    [made] = [segment["takes"] for segment in json.loads((task.output / "result.json").read_text())["made_clips"]][1:2]
    assert [(take["take"], take["kept"]) for take in made] == [(0, False), (1, True)]
    rows = [record.data for record in segments_table(result).records]
    assert [(row["segment"], row["take"], row["kept"]) for row in rows] == [
        (1, 1, True), (2, 1, False), (2, 2, True), (3, 1, True),
    ]  # fmt: skip


def test_a_hopeless_segment_keeps_its_best_take(tiny_snapshot, make_task, spoil):
    seeds = spoil(0.95, 0.85, 0.9)
    result, _ = run(tiny_snapshot, make_task("hopeless", retakes=2))
    takes = result.made_segments[1].takes
    assert [take.kept for take in takes] == [False, True, False] and all(take.misses for take in takes)
    assert len(seeds) == 5
    strict = CheckSettings(colour_drift=8)
    assert max(result.quality.colour_drift) > strict.colour_drift
    assert not judge(result, strict)["colour_drift"].passed
    assert sorted(path.name for path in result.video_path.parent.iterdir()) == [
        "poster.jpg", "preview.webp", "result.json", "video.mp4",
    ]  # fmt: skip


@pytest.mark.parametrize("shares", [(0.9, 0.0), (0.85, 0.95)], ids=["the second is kept", "the first is kept"])
def test_a_run_that_is_interrupted_in_the_second_take(tiny_snapshot, make_task, spoil, shares):
    spoil(*shares)
    whole = make_task("whole")
    run(tiny_snapshot, whole)
    broken = make_task("broken")
    spoil(*shares, stop_at=2, error=RuntimeError("stopped"))
    assert run(tiny_snapshot, broken)[0].error == "RuntimeError: stopped"
    spoil.resumed = 2
    seeds = spoil(*shares)
    result, recorder = run(tiny_snapshot, broken)
    assert result.error is None and seeds == [seed_of(42, 1, 1), None], "the first take is kept"
    assert "broken: resumes with take 2 of segment 2" in recorder.lines
    assert np.array_equal(frames(broken), frames(whole))
    assert (broken.output / "video.mp4").read_bytes() == (whole.output / "video.mp4").read_bytes()


def test_out_of_memory_in_a_retake(tiny_snapshot, make_task, spoil, monkeypatch):
    full = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
    monkeypatch.setattr(fallback, "placements_for", lambda *arguments: [Placement("resident"), Placement("swap")])
    seeds = spoil(0.9, 0.0, stop_at=2, error=full)
    result, _ = run(tiny_snapshot, make_task("full"))
    assert result.error is None and seeds == [None, None, seed_of(42, 1, 1), seed_of(42, 1, 1), None]
    assert [segment.placement for segment in result.made_segments] == ["resident", "swap", "swap"]


def test_misses_and_the_best_take():
    limits = CheckSettings(colour_drift=8, seam=1.5, pose=0.6, identity=0.5, frozen_seconds=0.5)
    good = SegmentMeasures(finite=True, frozen_frames=15, colour_drift=8, seam=1.5, pose_similarity=0.6, identity=0.5)
    assert misses(good, limits, 30) == {} == misses(SegmentMeasures(finite=True), limits, 30)
    bad = SegmentMeasures(finite=True, frozen_frames=30, colour_drift=10, pose_similarity=0.3, blank_frames=0)
    assert misses(bad, limits, 30) == {"frozen": 1.0, "colour_drift": 0.25, "pose": 0.5}
    assert misses(SegmentMeasures(finite=False), limits, 30)["finite"] > 100
    takes = [
        Take(take=take, seed=take, seconds=1, measures=good, misses=missed)
        for take, missed in enumerate([{"seam": 0.4, "pose": 0.2}, {"finite": 1000.0}, {"seam": 0.3}, {"pose": 0.3}])
    ]
    assert best(takes) is takes[2], "of equal ones the earlier"


def test_noise_in_all_frames_is_a_seam(make_job):
    """Noise changes every frame of the segment, so a comparison with the segment's own changes would hide it."""
    folder = make_job(frames=20)
    meter = SegmentMeter(check_clips(folder, "animate"), lambda: None, None)
    clean = np.stack(moving_frames(20, 64, 96, 1))
    noisy = np.clip(clean[10:] + np.random.default_rng(0).normal(0, 40, clean[10:].shape), 0, 255).astype(np.uint8)
    first = meter.measure(clean[:10], 0, True, None, [])
    assert (first.colour_drift, first.seam, first.blank_frames) == (0, None, 0)
    good, bad = (meter.measure(each, 10, True, clean[9], [first]) for each in (clean[10:], noisy))
    assert good.seam < 1.2 and bad.seam > 2
    frozen = meter.measure(np.repeat(clean[9:10], 10, axis=0), 10, True, clean[9], [first])
    assert frozen.frozen_frames == 10


@pytest.mark.heavy
@pytest.mark.parametrize("mode", ["animate", "replace"])
def test_killed_in_the_second_take(mode, tiny_snapshot, make_job, tmp_path, monkeypatch):
    """Every segment misses the threshold of identity. In mode replace, the second of two characters is being made."""
    monkeypatch.setenv("WAN_CHECK_IDENTITY", "1")
    clips = make_job("killed", frames=11, mode=mode)
    if mode == "replace":
        add_character(clips, 11)
    videos = []
    for name, kill in (("whole", False), ("broken", True)):
        output = tmp_path / name
        command = [sys.executable, "-m", "wan_orchestration.infer", "--clip-len=5", "--sampling-steps=12"]
        command += ["--retakes=1", f"--src-root={clips}", f"--checkpoint-dir={tiny_snapshot}", f"--output={output}"]
        command += [f"--mode={mode}"]
        if kill:
            victim, work = subprocess.Popen(command), output / ".work"
            state = (work / "character_2" if mode == "replace" else work) / "state.json"
            deadline = time.monotonic() + 300
            while not (state.exists() and json.loads(state.read_text())["takes"]):
                assert time.monotonic() < deadline and victim.poll() is None
                time.sleep(0.02)
            victim.send_signal(signal.SIGKILL)
            victim.wait()
        done = subprocess.run(command, capture_output=True, check=True, text=True)
        assert ("resumes with take 2 of segment" in done.stderr) == kill
        result = Result.model_validate_json(done.stdout)
        assert all(len(segment.takes) == 2 for segment in result.made_segments)
        assert (result.resumed_segments >= 3) == (kill and mode == "replace"), "the first pass is kept"
        videos.append((output / "video.mp4").read_bytes())
    assert videos[0] == videos[1]


def test_words_name_a_second_take():
    progress = Progress(job_id="a", phase="denoising", segment=2, segments=3, step=5, steps=20, take=2)
    assert progress.words == "segment 2 of 3, take 2, step 5 of 20"
