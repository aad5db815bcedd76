"""What a video will take, from earlier ones."""

import json
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from wan_orchestration.api.estimate import estimate
from wan_orchestration.protocol.messages import Result, Seconds, SnapshotInfo
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
    settings = GenerateSettings(clip_len=5, sampling_steps=20, guide_scale=2)
    assert estimate(env, settings, 9, 500_000).seconds is None
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
    found = estimate(env, settings, 9, 500_000)
    assert (found.seconds, found.price, found.basis) == (3 + 5 * (2.5 + 4 * 20), None, "from 3 earlier videos")
    monkeypatch.setenv("WAN_PRICE_PER_HOUR", "3.6")
    monkeypatch.setenv("WAN_TORCHRUN_PROCESSES", "2")
    assert estimate(env, settings, 9, 500_000).price == pytest.approx(found.seconds * 2 / 1000, abs=1e-4)


def test_without_videos_the_engines_own_rates_are_used(env):
    folder = env.cache_root / hub.resolve(env).fingerprint[:16]
    folder.mkdir(parents=True)
    rates = {"loading": 2, "compiling": 1, "encoding": 1, "denoising": 0.5, "decoding": 1, "finishing": 0}
    (folder / "seconds.json").write_text(json.dumps({"cuda x 1, bfloat16": rates}))
    found = estimate(env, GenerateSettings(clip_len=5, sampling_steps=10), 5, 200_000)
    assert (found.seconds, found.basis) == (10, "from earlier runs with the same weights")
