"""Networks of estimators that the launch keeps open give way to the models."""

from types import SimpleNamespace

import pytest
import torch

from wan_orchestration.engine.memory.placement import Placement
from wan_orchestration.engine.parallel.ranks import Ranks
from wan_orchestration.generate import fallback
from wan_orchestration.generate.segments import Plan
from wan_orchestration.preprocess.networks import Networks
from wan_orchestration.settings.generate import GenerateSettings


@pytest.fixture
def plan():
    pose = SimpleNamespace(height=64, width=96)
    task = SimpleNamespace(
        job_id="job", settings=GenerateSettings(), clips=SimpleNamespace(driving=pose, height=64, width=96)
    )
    return Plan(None, task, (), first=0, count=1)


@pytest.mark.parametrize(
    "memory, size, name, kept",
    [
        (10, 1, "resident", True),  # fits beside the networks
        (8, 4, "resident", False),  # fits without them
        (3, 1, "offload", True),  # the fastest fits in neither case
    ],
)
def test_networks_are_freed_if_a_faster_placement_then_fits(plan, memory, size, name, kept, monkeypatch, tmp_path):
    (tmp_path / "network").write_bytes(bytes(size))
    networks = Networks()
    networks.open("vitpose", "cuda", [tmp_path / "network"], object)
    estimate = [Placement("resident", 9), Placement("offload", 2), Placement("tiled", 1)]
    monkeypatch.setattr(fallback, "pick_device", lambda settings, ranks: (torch.device("cuda", 0), torch.bfloat16))
    monkeypatch.setattr(fallback, "device_memory", lambda device: memory + (0 if networks.bytes_on("cuda") else size))
    monkeypatch.setattr(fallback, "sizes", lambda *arguments: None)
    monkeypatch.setattr(fallback, "all_placements", lambda *arguments, **options: estimate)
    ways = fallback.placements_for(plan, Ranks(), False, False, networks)
    assert (ways[0].name, networks.bytes_on("cuda") > 0) == (name, kept)


def test_out_of_memory_frees_networks_before_a_slower_placement_is_tried(plan, monkeypatch):
    networks, tried, lines = Networks(), [], []
    networks.open("vitpose", "cuda", [], object)
    monkeypatch.setattr(fallback, "placements_for", lambda *arguments: [Placement("resident"), Placement("swap")])

    def make(plan):
        tried.append(plan.placement)
        if len(tried) < 3:
            raise torch.OutOfMemoryError("CUDA out of memory")

    maker = SimpleNamespace(ranks=Ranks(), fsdp=False, models=None, recover=lambda error: None)
    unfinished = SimpleNamespace(fingerprint="f", segments=[], takes=[], colours=None)
    fallback.with_fallback(plan, maker, unfinished, {False: "f"}, lines.append, make, networks)
    assert tried == ["resident", "resident", "swap"]
    assert [line.partition("; ")[2] for line in lines] == [
        "trying resident without the estimators' networks",
        "trying swap",
    ]
