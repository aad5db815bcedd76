"""Jobs that need different weights: what their runs load, and which of their videos are out of date."""

import dagster as dg
import pytest
from hub_server import animate_2_layout, original_layout, write_download, write_files
from tasks import make_task

from wan_orchestration.defs.freshness import video_is_fresh, video_tags
from wan_orchestration.defs.jobs.versions import JobVersion
from wan_orchestration.defs.videos.assets import _requests
from wan_orchestration.defs.weights.needed import Snapshots, asset_version
from wan_orchestration.errors import BadInput
from wan_orchestration.settings.environment import environment

NEEDS = {"a": ("animate", "distilled"), "b": ("animate-2", "base"), "c": ("animate", "base")}


@pytest.fixture
def snapshots(data_root, monkeypatch) -> Snapshots:
    """Of Wan2.2-Animate in WAN_CHECKPOINT_DIR, and of Wan-Animate-2 as a download with both checkpoints."""
    monkeypatch.setenv("WAN_CHECKPOINT_DIR", str(write_files(data_root / "weights", original_layout(8))))
    write_download(data_root / "models/Wan-AI--Wan2.2-Animate-2-14B/master", animate_2_layout())
    environment.cache_clear()
    return Snapshots()


def test_a_request_for_each_snapshot(snapshots, tmp_path):
    used = {key: snapshots.of(*need) for key, need in NEEDS.items()}
    requests = list(_requests({key: make_task(key, tmp_path) for key in NEEDS}, used))
    assert [[task.job_id for task in request.tasks] for request in requests] == [["a", "c"], ["b"]]
    assert [(request.snapshot, request.variant) for request in requests] == [
        (tmp_path / "weights", "only"),
        (tmp_path / "models/Wan-AI--Wan2.2-Animate-2-14B/master", "base"),
    ]


def test_videos_are_compared_with_the_weights_that_they_need(snapshots, instance, data_root):
    clips = {"dagster/data_version": "clips"}
    own = {key: snapshots.of(*need).fingerprint for key, need in NEEDS.items()}
    assert asset_version(instance, snapshots, own["b"]) == own["b"], "nothing was materialized yet"
    installed = dg.AssetMaterialization("weight_snapshot", tags={"dagster/data_version": own["a"]})
    instance.report_runless_asset_event(installed)
    jobs = {key: JobVersion(key, "animate", 0, "content", "inputs", "settings") for key in NEEDS}

    def tags(key: str) -> dict[str, str]:
        return video_tags(instance, jobs[key], "video", "clips", asset_version(instance, snapshots, own[key]), own[key])

    made = {key: tags(key) for key in NEEDS}
    assert {tag["dagster/input_data_version/weight_snapshot"] for tag in made.values()} == {own["a"]}, "no marks"
    assert all(video_is_fresh(made[key], jobs[key], clips, own[key]) for key in NEEDS)
    assert not video_is_fresh(made["b"], jobs["b"], clips, own["a"])
    earlier = {name: tag for name, tag in made["a"].items() if name != "wan/weights"}
    assert video_is_fresh(earlier, jobs["a"], clips, own["a"]), "of an earlier version of this program"
    assert not video_is_fresh(earlier, jobs["a"], clips, own["b"])

    (data_root / "weights/config.json").write_text('{"_class_name": "WanAnimateModel", "dim": 8}')
    assert asset_version(instance, Snapshots(), own["b"]) == own["b"], "its snapshot is gone"


def test_missing_weights_are_named(snapshots, data_root):
    (data_root / "models/Wan-AI--Wan2.2-Animate-2-14B/master/.wan-manifest.json").unlink()
    for _ in range(2):
        with pytest.raises(BadInput, match=r"needs Wan-Animate-2 \(base\), but WAN_CHECKPOINT_DIR is a snapshot of"):
            snapshots.of("animate-2", "base")
    assert len(snapshots.fingerprints()) == 1
