"""One process that makes many different videos, against processes that make one each."""

import random
from datetime import UTC, datetime
from itertools import combinations

import pytest
import torch
from diffusers.models.transformers.transformer_wan_animate import WanAnimateMotionEncoder

from benchmarks import random_snapshot
from wan_orchestration.engine.lora import Lora
from wan_orchestration.engine.parallel.ranks import Ranks
from wan_orchestration.generate.segments import Plan, SegmentMaker
from wan_orchestration.jobs.clips import check_clips
from wan_orchestration.protocol.messages import Task
from wan_orchestration.settings.generate import GenerateSettings
from wan_orchestration.weights.snapshot import open_snapshot


@pytest.fixture(scope="module")
def other_snapshot(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "other"
    random_snapshot.write(folder, random_snapshot.Widths(layers=5, vae=8), seed=1)
    return folder


@pytest.fixture
def quick_faces(monkeypatch):
    """Encodes one frame of each face clip, and takes the others for the same. Encoding takes most of a short job."""

    def forward(self, x, whole=WanAnimateMotionEncoder.forward):
        return whole(self, x[:1]).expand(len(x), -1)

    monkeypatch.setattr(WanAnimateMotionEncoder, "forward", forward)


def frames(maker, plan):
    made = []

    def keep(segment):
        made.append(segment.video)
        return segment.kept

    maker.make(plan, receive=keep)
    return torch.cat(made, 1)


def test_frames_do_not_depend_on_earlier_jobs(
    tiny_snapshot, other_snapshot, make_job, style, motion, quick_faces, tmp_path
):
    folders = {
        "animate": make_job("a", frames=5),
        "small": make_job("s", frames=5, height=32, width=32),
        "replace": make_job("r", frames=5, height=48, width=64, mode="replace"),
    }
    kinds = {
        "plain": {},
        "style": {"lora": [style]},
        "weak style": {"lora": [f"{style}:0.5"]},
        "motion": {"lora": [motion], "mode": "replace"},
        "both": {"lora": [style, f"{motion}:0.7"], "guide_scale": 2.0},
        "both, in the other order": {"lora": [f"{motion}:0.7", style]},
        "prompt": {"prompt": "a dog", "offload_model": False},
        "bfloat16": {"dtype": "bfloat16", "vae_dtype": "bfloat16", "lora": [motion]},
        "vae in bfloat16": {"vae_dtype": "bfloat16", "sampling_steps": 4, "step_cache": 2},
        "swap": {"placement": "swap", "lora": [style], "mode": "replace"},
        "offload": {"placement": "offload", "lora": [motion], "offload_model": False},
        "tiled": {"placement": "tiled", "lora": [motion, style]},
        "other snapshot": {"lora": [style]},
    }

    def plan(name):
        snapshot = open_snapshot(other_snapshot if name == "other snapshot" else tiny_snapshot)
        values = {"clip_len": 5, "sampling_steps": 1, "device": "cpu", "mode": "animate"} | kinds[name]
        settings = GenerateSettings(**values | {"lora": [str(lora) for lora in values.get("lora", [])]})
        clips = check_clips(folders["small" if "bfloat16" in name else settings.mode], settings.mode)
        task = Task(job_id=name, clips=clips, output=tmp_path / name, settings=settings, created_at=datetime.now(UTC))
        placement = settings.placement if settings.placement != "auto" else "resident"
        loras = tuple(Lora.parse(text) for text in settings.lora)
        return Plan(snapshot, task, loras, first=0, count=1, placement=placement)

    expected = {name: frames(SegmentMaker(Ranks()), plan(name)) for name in kinds}
    assert not any(torch.equal(expected[one], expected[two]) for one, two in combinations(kinds, 2))
    maker, shuffle = SegmentMaker(Ranks()), random.Random(0)
    order = [*shuffle.sample(list(kinds), len(kinds)), *shuffle.choices(list(kinds), k=6)]
    for index, name in enumerate(order):
        assert torch.equal(frames(maker, plan(name)), expected[name]), order[: index + 1]
