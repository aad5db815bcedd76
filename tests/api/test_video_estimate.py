"""What a video will take, from earlier ones, or from the planner."""

import io
import json
import os
import sys
import time
from contextlib import redirect_stdout
from datetime import UTC, datetime
from pathlib import Path

import pytest

from wan_orchestration.api.estimate import Estimator, _planner_arguments
from wan_orchestration.cli import plan
from wan_orchestration.protocol.devices import Card, cards
from wan_orchestration.protocol.messages import Result, Seconds, SegmentFacts, SegmentMeasures, SnapshotInfo, Take
from wan_orchestration.settings.environment import Environment
from wan_orchestration.settings.generate import GenerateSettings
from wan_orchestration.weights import hub

MINI = Path(__file__).parents[2] / "data" / "models" / "wan-animate-mini"
NOW = datetime.now(UTC)


@pytest.fixture
def env(tmp_path) -> Environment:
    return Environment(data_root=tmp_path, checkpoint_dir=MINI, cache_root=tmp_path / "cache")


@pytest.fixture
def made(env):
    """A video of one segment of a million pixels in all, made before; returns nothing."""

    def add(key: str, seconds: Seconds, age: float = 0, **changes) -> None:
        result = Result(
            job_id=key,
            status="succeeded",
            created_at=NOW,
            width=250,
            height=800,
            segments=1,
            seconds=seconds,
            device="cuda",
            settings=GenerateSettings(clip_len=5, sampling_steps=10),
            snapshot=SnapshotInfo(path=MINI, layout="original"),
        ).model_copy(update=changes)
        file = env.videos_root / key / "result.json"
        file.parent.mkdir(parents=True)
        file.write_text(result.model_dump_json())
        os.utime(file, (NOW.timestamp() - age,) * 2)

    return add


def test_earlier_videos_are_scaled(env, made, monkeypatch):
    settings, estimator = GenerateSettings(clip_len=5, sampling_steps=20, guide_scale=2), Estimator(env)
    assert estimator.estimate(settings, 9, 500, 1000).seconds is None
    spent = Seconds(load=3, encode=1, denoise=20, decode=1, finish=0.5, total=25.5)
    made("a", spent)
    made("b", spent.model_copy(update={"denoise": 30}), 5)
    made("c", spent.model_copy(update={"denoise": 10}), 9)
    made("another card", spent.model_copy(update={"denoise": 99}), 1, device="cpu")
    made("interrupted", spent.model_copy(update={"denoise": 0.1}), 2, resumed_segments=1)
    made("other weights", spent, 3, snapshot=SnapshotInfo(path=Path("/other"), layout="original"))
    glob, purged = Path.glob, env.videos_root / "purged" / "result.json"
    monkeypatch.setattr(
        Path, "glob", lambda self, pattern: [*glob(self, pattern), *[purged] * (self == env.videos_root)]
    )
    # Two segments of 2.5 million pixels, with four times the forwards.
    found = estimator.estimate(settings, 9, 500, 1000)
    assert (found.seconds, found.price, found.basis) == (3 + 5 * (2.5 + 4 * 20), None, "from 3 earlier videos")
    assert found.most_seconds == found.seconds
    takes = [Take(take=number, seed=number, seconds=22, measures=SegmentMeasures(finite=True)) for number in (0, 1)]
    twice = SegmentFacts(frames=5, seconds=44, seconds_per_step=2, takes=takes)
    made("d", Seconds(load=3, encode=2, denoise=40, decode=2, finish=0.5, total=47.5), -1, made_segments=[twice])
    assert estimator.estimate(settings, 9, 500, 1000).seconds == found.seconds, "a segment made twice counts as two"
    careful = estimator.estimate(settings.model_copy(update={"retakes": 2}), 9, 500, 1000)
    assert (careful.seconds, careful.most_seconds) == (found.seconds, found.seconds + 2 * 5 * (2 + 4 * 20))
    monkeypatch.setenv("WAN_PRICE_PER_HOUR", "3.6")
    monkeypatch.setenv("WAN_TORCHRUN_PROCESSES", "2")
    priced = estimator.estimate(settings, 9, 500, 1000)
    assert (priced.price, priced.most_price) == (pytest.approx(found.seconds * 2 / 1000, abs=1e-4),) * 2


def test_without_videos_the_engines_own_rates_are_used(env):
    folder = env.cache_root / hub.resolve(env).fingerprint[:16]
    folder.mkdir(parents=True)
    rates = {"loading": 2, "compiling": 1, "encoding": 1, "denoising": 0.5, "decoding": 1, "finishing": 1e-9}
    (folder / "seconds.json").write_text(json.dumps({"cuda x 1, bfloat16": rates}))
    found = Estimator(env).estimate(GenerateSettings(clip_len=5, sampling_steps=10), 5, 250, 800)
    assert (found.seconds, found.basis) == (10, "from earlier runs with the same weights")


def test_the_planner_estimates_the_first_video(env, monkeypatch, tmp_path):
    """Planning in a process of its own would import torch for 10 s, so a program stands in for it."""
    _program(
        tmp_path / "nvidia-smi",
        'case "$1" in *name*) echo GPU-1, NVIDIA H100 80GB HBM3, 81559;; *) echo 0, GPU-1;; esac',
    )
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    settings, estimator = GenerateSettings(clip_len=5, sampling_steps=10, guide_scale=2, retakes=1), Estimator(env)
    printed = io.StringIO()
    with redirect_stdout(printed):
        flags = _planner_arguments(cards("all"), MINI, settings, 256, 800)
        assert plan.main(["--json", *flags]) == 0
    (chosen,) = [way for way in json.loads(printed.getvalue())["ways"] if way["chosen"]]
    assert {"--gpus=1", "--guidance", "--resolution=256x800"} < set(flags) and 0 < chosen["seconds"] < 10
    (tmp_path / "printed.json").write_text(printed.getvalue())
    _program(tmp_path / "python", f"sleep 0.2; cat {tmp_path}/printed.json")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    found = estimator.estimate(settings, 9, 256, 800)
    assert (found.seconds, found.pending) == (None, True)
    while found.pending:
        time.sleep(0.05)
        found = estimator.estimate(settings, 9, 256, 800)
    assert found.basis == "from the planner"
    assert found.most_seconds - found.seconds == pytest.approx(2 * chosen["seconds"], abs=0.11)
    _program(tmp_path / "python", "exit 1")
    assert estimator.estimate(settings, 9, 256, 800) == found, "planned once"
    other = Estimator(env)
    while (found := other.estimate(settings, 9, 256, 800)).pending:
        time.sleep(0.05)
    assert found.seconds is None and "unknown" in found.basis


def _program(file: Path, script: str) -> None:
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)


@pytest.mark.parametrize(
    "name, tflops",
    [("NVIDIA H100 80GB HBM3", 791.2), ("NVIDIA H100 PCIe", 604.8), ("NVIDIA L40S", 289.6), ("NVIDIA T4", None)],
)
def test_speeds_of_cards(name, tflops):
    assert Card("GPU-1", name, 1).tflops == (tflops and pytest.approx(tflops))
