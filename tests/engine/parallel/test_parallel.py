"""Several ranks on the CPU, started by torchrun: they make the same video as one rank, and fail together."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from media import moving_frames

from benchmarks import long_video, random_snapshot
from wan_orchestration.families.animate.animator import Animator
from wan_orchestration.generate import runner
from wan_orchestration.jobs.clips import check_clips
from wan_orchestration.protocol.messages import Request, Task
from wan_orchestration.settings.checks import CheckSettings
from wan_orchestration.settings.generate import GenerateSettings
from wan_orchestration.video.writer import write_lossless

ROOT = Path(__file__).parents[3]
PARITY = ROOT.parent / "shared" / "parity"
LAUNCHED = Path(__file__).with_name("launched.py")

# (job, settings). A frame has 20 tokens, which 2 and 4 ranks divide evenly, or 25. It has 8, 10 or 6 rows of latents,
# which some numbers of ranks divide evenly.
JOBS = {
    "even": ({"frames": 6, "height": 64, "width": 80}, {"pose_strength": 1.5, "face_strength": 0.5}),
    "odd": ({"frames": 5, "height": 80, "width": 80}, {"use_relighting_lora": True}),
    "guided": ({"frames": 6, "height": 64, "width": 80}, {"guide_scale": 2.0, "cfg_parallel": True, "retakes": 1}),
    "replace": (
        {"frames": 6, "height": 48, "width": 64, "mode": "replace"},
        {"mode": "replace", "use_relighting_lora": True},
    ),
}

# Settings of Wan-Animate-2's jobs. A generated frame has 20 tokens, a driving frame 15.
ANIMATE_2_JOBS = {
    "device": {"driving_cache": "device"},
    "inputs": {"driving_cache": "inputs"},
    "branches": {"driving_cache": "host", "cfg_parallel": True},
    "branches with inputs": {"driving_cache": "host-inputs", "cfg_parallel": True},
    "whole steps": {"driving_cache": "device", "guide_scale": 1.0},
}


class Silent:
    def log(self, message):
        pass

    progress = segment = finished = log


def torchrun(ranks, *command, **environment):
    """A finished launch, and the seconds it took."""
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nnodes=1", f"--nproc-per-node={ranks}"]
        + [str(part) for part in command],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done, time.monotonic() - started


@pytest.fixture(scope="module")
def launch(tmp_path_factory):
    """Runs a request on ranks. Returns its folder, its results and the finished process."""

    def run(ranks, request, *words):
        folder = tmp_path_factory.mktemp("launch")
        (folder / "request.json").write_text(request.model_dump_json())
        done, _ = torchrun(ranks, LAUNCHED, folder / "request.json", *words)
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        assert done.returncode == 0, done.stderr[-4000:]
        return folder, lines, done

    return run


@pytest.fixture
def request_of(make_job, tmp_path):
    """A request for the jobs above, on a snapshot with four attention heads."""

    def make(*names):
        random_snapshot.write(tmp_path / "snapshot", random_snapshot.Widths(layers=5, heads=4))
        tasks = []
        for name in names:
            job, settings = JOBS[name]
            tasks.append(
                Task(
                    job_id=name,
                    clips=check_clips(make_job(name, **job), settings.get("mode", "animate")),
                    output=tmp_path / "alone" / name,
                    settings=GenerateSettings(clip_len=5, sampling_steps=2, device="cpu", **settings),
                    created_at=datetime.now(UTC),
                    save_frames=tmp_path / "alone" / f"{name}.npz",
                    checks=CheckSettings(identity=1.0),  # every segment misses it
                )
            )
        return Request(snapshot=tmp_path / "snapshot", tasks=tasks)

    return make


def frames(path):
    return np.load(path)["frames"]


@pytest.mark.parametrize(
    "ranks, jobs",
    [
        (2, ["odd", "guided"]),
        pytest.param(2, ["even", "replace"], marks=pytest.mark.heavy),
        pytest.param(3, [*JOBS], marks=pytest.mark.heavy),
        pytest.param(4, [*JOBS], marks=pytest.mark.heavy),
    ],
)
def test_ranks_make_the_same_video_as_one(ranks, jobs, launch, request_of):
    """With whole and sharded weights. Then rank 1 runs out of memory and later raises, while the others wait for it."""
    request, count = request_of(*jobs), len(jobs)
    alone = runner.run([(request, Silent())])
    assert [result.error for result in alone] == [None] * count
    folder, lines, done = launch(ranks, request, "plain", "fsdp", "full", "raise")
    plain, fsdp, full, raised = lines[:count], lines[count : 2 * count], lines[2 * count : -count], lines[-count:]
    for word, results in (("plain", plain), ("fsdp", fsdp), ("full", full)):
        names = jobs[: len(results)]
        assert [result["error"] for result in results] == [None] * len(results)
        assert {result["placement"] for result in results} == {"swap" if word == "full" else "resident"}
        for name, result, one in zip(names, results, alone):
            kept = [[take["kept"] for take in segment["takes"]] for segment in result["made_clips"]]
            assert kept == [[take.kept for take in segment.takes] for segment in one.made_segments]
            assert {len(takes) for takes in kept} == {2 if name == "guided" else 1}
            expected = frames(request.tasks[jobs.index(name)].save_frames)
            ours = frames(folder / word / f"{name}.npz")
            assert ours.shape == expected.shape
            assert np.abs(ours - expected).max() < 1e-4, (word, name)
    assert "sequence parallel of degree" in done.stderr
    if "guided" in jobs:
        assert ("side by side" in done.stderr) == (ranks % 2 == 0)
        assert ("the number of ranks is odd" in done.stderr) == (ranks % 2 == 1)

    assert f"{jobs[0]}: out of memory with placement resident; trying swap" in done.stderr

    failed, *others = raised
    assert failed["status"] == "failed"
    assert failed["error"] == "rank 1: RuntimeError: rank 1 fails on purpose"
    assert not failed["bad_input"]
    lasted = datetime.fromisoformat(failed["finished_at"]) - datetime.fromisoformat(failed["started_at"])
    assert lasted.total_seconds() < 40
    assert all("not started" in result["error"] for result in others)


@pytest.fixture(params=["base", "distilled"])
def animate_2_request(request, tmp_path):
    """The jobs above, guided, on a snapshot with four attention heads."""
    widths = replace(random_snapshot.ANIMATE_2_WIDTHS, dim=128, heads=4)
    random_snapshot.write_animate_2(tmp_path / "snapshot", widths, variants=(request.param,))
    folder = long_video.draw_animate_2_job(tmp_path / "job", 6, 64, 80)
    write_lossless(folder / "src_driving.mp4", moving_frames(6, 48, 80, 1), 24)
    tasks = [
        Task(
            job_id=name,
            clips=check_clips(folder, "animate", model="animate-2"),
            output=tmp_path / "alone" / name,
            settings=GenerateSettings(
                model="animate-2",
                variant=request.param,
                **{"clip_len": 5, "sampling_steps": 2, "guide_scale": 2.0, "device": "cpu", **settings},
            ),
            created_at=datetime.now(UTC),
            save_frames=tmp_path / "alone" / f"{name}.npz",
        )
        for name, settings in ANIMATE_2_JOBS.items()
    ]
    return Request(snapshot=tmp_path / "snapshot", variant=request.param, tasks=tasks)


@pytest.mark.heavy
@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_ranks_make_the_same_video_of_the_second_family(ranks, launch, animate_2_request):
    """With whole and sharded weights."""
    alone = runner.run([(animate_2_request, Silent())])
    assert [result.error for result in alone] == [None] * len(ANIMATE_2_JOBS)
    folder, lines, done = launch(ranks, animate_2_request, "plain", "fsdp")
    assert [line["error"] for line in lines] == [None] * 2 * len(ANIMATE_2_JOBS)
    for word in ("plain", "fsdp"):
        for task in animate_2_request.tasks:
            ours, expected = frames(folder / word / f"{task.job_id}.npz"), frames(task.save_frames)
            assert ours.shape == expected.shape
            assert np.abs(ours - expected).max() < 1e-4, (word, task.job_id)
    assert ("side by side" in done.stderr) == (ranks % 2 == 0)


@pytest.mark.skipif(not PARITY.is_dir(), reason=f"the recorded outputs are not at {PARITY}")
@pytest.mark.parametrize(
    "case, fsdp",
    [
        ("d_replace_2clips", "0"),
        pytest.param("a_animate_1clip", "1", marks=pytest.mark.heavy),
        pytest.param("b_animate_3clips_pad", "0", marks=pytest.mark.heavy),
        pytest.param("g_replace_relight_lora", "1", marks=pytest.mark.heavy),
    ],
)
def test_infer_on_two_ranks_agrees_with_the_published_frames(case, fsdp, tmp_path):
    """The script for two GPUs, with a blank in the output path."""
    folder = PARITY / "cases" / case
    recorded = json.loads((folder / "params.json").read_text())
    params = recorded["params"]
    output = tmp_path / "with blank"
    command = [ROOT / "scripts" / "torchrun_animate.sh", "--src-root", folder / "job", "--output", output]
    command += ["--checkpoint-dir", PARITY / "snapshot", "--save-frames", tmp_path / "frames.npz", "--device=cpu"]
    for name in ("clip_len", "refert_num", "shift", "sample_solver", "sampling_steps", "guide_scale", "seed"):
        command.append(f"--{name.replace('_', '-')}={params[name]}")
    command += ["--replace"] if params["replace_flag"] else []
    command += ["--use-relighting-lora"] if recorded.get("use_relighting_lora") else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHON": sys.executable, "WAN_ENABLE_FSDP": fsdp}
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=300)
    result = json.loads(done.stdout)
    assert (done.returncode, result["status"]) == (0, "succeeded"), done.stderr[-4000:]
    assert "2 ranks" in done.stderr
    assert ("FSDP" in done.stderr) == (fsdp == "1")
    assert (output / "video.mp4").is_file()
    assert np.abs(frames(tmp_path / "frames.npz") - frames(folder / "output.npz")).max() < 1e-4


@pytest.mark.heavy
def test_ranks_resume_where_one_rank_stopped(request_of, tmp_path, monkeypatch):
    request = request_of("even")
    [task] = request.tasks
    assert runner.run([(request, Silent())])[0].error is None

    def stop(self, clip, guide):
        if guide is not None:
            raise RuntimeError("stopped")
        return condition(self, clip, guide)

    condition = Animator.condition
    monkeypatch.setattr(Animator, "condition", stop)
    started = task.model_copy(update={"output": tmp_path / "plain" / "even"})
    [result] = runner.run([(Request(snapshot=request.snapshot, tasks=[started]), Silent())])
    assert result.error == "RuntimeError: stopped"

    (tmp_path / "request.json").write_text(request.model_dump_json())
    done, _ = torchrun(2, LAUNCHED, tmp_path / "request.json", "plain")
    resumed = json.loads(done.stdout)
    assert (resumed["error"], resumed["resumed_clips"], resumed["clips"]) == (None, 1, 2)
    assert np.abs(frames(tmp_path / "plain" / "even.npz") - frames(task.save_frames)).max() < 1e-4


@pytest.mark.heavy
def test_sequence_parallel_off(request_of, tmp_path):
    """Rank 0 works alone; the other rank exits."""
    request = request_of("even")
    command = [
        "-m",
        "wan_orchestration.infer",
        "--src-root",
        request.tasks[0].clips.folder,
        "--output",
        tmp_path / "out",
    ]
    command += ["--checkpoint-dir", request.snapshot, "--clip-len=5", "--sampling-steps=1", "--device=cpu"]
    done, _ = torchrun(2, *command, WAN_ENABLE_SEQUENCE_PARALLEL="false")
    assert done.returncode == 0
    assert json.loads(done.stdout)["status"] == "succeeded"
    assert "2 ranks" not in done.stderr


@pytest.mark.heavy
def test_killed_rank_ends_the_launch(request_of, tmp_path):
    request = request_of("even")
    (tmp_path / "request.json").write_text(request.model_dump_json())
    done, seconds = torchrun(2, LAUNCHED, tmp_path / "request.json", "die")
    assert done.returncode != 0
    assert "SIGKILL" in done.stderr
    assert seconds < 120
