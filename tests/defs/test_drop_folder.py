"""The drop folder's sensor, tick by tick. tests/test_operations.py runs it under a real `dagster dev`."""

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import pytest

from wan_orchestration.defs.jobs import sensors
from wan_orchestration.defs.jobs.cursor import STORED_AS
from wan_orchestration.defs.jobs.loose_files import loose_files
from wan_orchestration.defs.jobs.run_requests import group
from wan_orchestration.defs.jobs.scan import scan_folder
from wan_orchestration.defs.jobs.sensors import drop_folder
from wan_orchestration.defs.jobs.versions import JobVersion
from wan_orchestration.jobs.folder import Job
from wan_orchestration.settings.environment import environment


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setenv("WAN_DROP_SETTLE_SECONDS", "0")


@pytest.fixture
def drop(data_root, tiny_snapshot, monkeypatch) -> Callable[..., Path]:
    """Drops a folder with a driving video and a picture, which the sensor does not look into."""
    monkeypatch.setenv("WAN_CHECKPOINT_DIR", str(tiny_snapshot))
    environment.cache_clear()
    (data_root / "jobs").mkdir()

    def make(key: str, content: bytes = b"video", priority: int | None = None) -> Path:
        folder = data_root / "jobs" / key
        folder.mkdir(exist_ok=True)
        (folder / "driving.mp4").write_bytes(content)
        (folder / "reference.png").write_bytes(b"picture")
        if priority is not None:
            (folder / "job.yaml").write_text(f"priority: {priority}")
        return folder

    return make


@pytest.fixture
def tick(instance, data_root) -> Callable[..., list[list[str]]]:
    """Runs the sensor and does with the result what the daemon does; returns the jobs of each run."""
    cursor: list[str | None] = [None]

    def run(status: dg.DagsterRunStatus = dg.DagsterRunStatus.SUCCESS, reset: bool = False) -> list[list[str]]:
        result = drop_folder(dg.build_sensor_context(instance=instance, cursor=None if reset else cursor[0]))
        assert isinstance(result, dg.SensorResult)
        cursor[0] = result.cursor
        for change in result.dynamic_partitions_requests:
            if isinstance(change, dg.AddDynamicPartitionsRequest):
                instance.add_dynamic_partitions("jobs", change.partition_keys)
            else:
                for key in change.partition_keys:
                    instance.delete_dynamic_partition("jobs", key)
        for event in result.asset_events:
            instance.report_runless_asset_event(event)
        for request in result.run_requests:
            instance.add_run(dg.DagsterRun(job_name=request.job_name, tags=request.tags, status=status))
        run.jobs = [request.job_name for request in result.run_requests]
        run.said = result.skip_reason.skip_message if result.skip_reason else ""
        return [keys(request.tags) for request in result.run_requests]

    def keys(tags) -> list[str]:
        named = [tag.removeprefix("job/") for tag in tags if tag.startswith("job/")]
        if len(named) == 1:
            assert tags["dagster/partition"] == named[0]
            return named
        order = instance.get_dynamic_partitions("jobs")
        first, last = (order.index(tags[f"dagster/asset_partition_range_{end}"]) for end in ("start", "end"))
        assert order[first : last + 1] == named
        return named

    return run


def test_each_content_of_a_folder_is_run_once(drop, tick, instance):
    folder = drop("one")
    assert tick() == [["one"]]
    assert tick() == []

    # The same content in a new folder starts nothing, not even if the sensor's memory is lost.
    shutil.copytree(folder, folder.with_name("copy"))
    shutil.rmtree(folder)
    folder.with_name("copy").rename(folder)
    assert tick() == []
    instance.daemon_cursor_storage.set_cursor_values({STORED_AS: "{}"})
    assert tick(reset=True) == []

    (folder / "job.yaml").write_text("generate: {seed: 7}")
    assert tick() == [["one"]]
    (folder / "job.yaml").write_text("{priority: 3, generate: {seed: 7}}")
    assert tick() == [], "the priority makes no other video"
    (folder / "job.yaml").unlink()
    assert tick() == [["one"]], "changed back is changed as well"
    assert tick() == []
    for run in instance.get_runs():
        instance.delete_run(run.run_id)
    assert tick() == []


def test_a_job_with_an_unfinished_run_is_not_started(drop, tick, instance):
    folder = drop("one")
    assert tick(status=dg.DagsterRunStatus.STARTED) == [["one"]]
    (folder / "job.yaml").write_text("generate: {seed: 7}")
    assert tick() == []
    (run,) = instance.get_runs()
    instance.report_run_canceled(run)
    assert tick() == [["one"]]


def test_runs_that_others_started_count(drop, tick, instance):
    """Runs from the shell, the UI and the HTTP API get the same tags, at the latest when they begin."""
    content = JobVersion.of(Job.open(drop("one"))).content
    instance.add_run(dg.DagsterRun(job_name="x", tags={"job/one": content}, status=dg.DagsterRunStatus.FAILURE))
    drop("two")
    assert tick() == [["two"]]


def test_nothing_is_run_before_copying_has_ended(drop, tick, monkeypatch, instance):
    monkeypatch.setenv("WAN_DROP_SETTLE_SECONDS", "0.3")
    folder = drop("slow")
    assert tick() == [] and instance.get_dynamic_partitions("jobs") == []
    for _ in range(4):
        time.sleep(0.15)
        with (folder / "driving.mp4").open("ab") as file:
            file.write(b"more")
        os.utime(folder / "driving.mp4", (0, 0))
        assert tick() == []
    time.sleep(0.4)
    (folder / ".driving.mp4.a1B2c3").write_bytes(b"rsync writes here")
    time.sleep(0.4)
    assert tick() == []
    (folder / ".driving.mp4.a1B2c3").rename(folder / "driving.mp4")
    assert tick() == []
    time.sleep(0.4)
    assert tick() == [["slow"]]


def test_an_abandoned_partial_file_does_not_block_for_ever(drop):
    (drop("one") / "driving.mp4.part").write_bytes(b"")
    state = scan_folder(drop("one"))
    assert not state.settled(state.changed_at + 600, settle_seconds=1)
    assert state.settled(state.changed_at + 1000, settle_seconds=1)


@pytest.fixture
def table(instance) -> Callable[[], dict[str, str]]:
    """What `rejected_folders` says."""

    def read() -> dict[str, str]:
        event = instance.get_latest_materialization_event(dg.AssetKey("rejected_folders"))
        return {row.data["name"]: row.data["reason"] for row in event.asset_materialization.metadata["table"].records}

    return read


def test_unusable_folders_are_listed_until_they_are_corrected(drop, tick, table, instance, data_root):
    drop("Bad Name")
    drop("typo")
    (data_root / "jobs" / "typo" / "job.yaml").write_text("generate: {sampling_stepps: 3}")
    (data_root / "jobs" / "empty").mkdir()
    (drop("broken") / "mask.mp4").symlink_to("/nowhere")
    assert tick() == []
    assert set(table()) == {"Bad Name", "typo", "empty", "broken"}
    assert "sampling_steps" in table()["typo"] and "rename" in table()["Bad Name"] and "no inputs" in table()["empty"]
    assert all(reason in tick.said for reason in table().values())
    events = instance.fetch_materializations(dg.AssetKey("rejected_folders"), limit=10).records
    tick()
    assert len(instance.fetch_materializations(dg.AssetKey("rejected_folders"), limit=10).records) == len(events) == 1

    (data_root / "jobs" / "typo" / "job.yaml").write_text("generate: {sampling_steps: 3}")
    (data_root / "jobs" / "Bad Name").rename(data_root / "jobs" / "good-name")
    assert tick() == [["good-name", "typo"]]
    assert set(table()) == {"empty", "broken"}


def test_loose_files_are_listed_until_they_lie_in_a_folder(drop, tick, table, instance, data_root):
    drop("one")
    jobs = data_root / "jobs"
    for name in ("Dance 2.MP4", "dance 2.png", "alone.heic", "notes.txt", ".hidden.mp4", "half.mp4.part", "Thumbs.db"):
        (jobs / name).write_bytes(b"content")
    assert tick() == [["one"]]
    assert table().keys() == {"Dance 2.MP4", "dance 2.png", "alone.heic", "notes.txt"}
    how = "mkdir dance-2; mv 'Dance 2.MP4' dance-2/driving.mp4; mv 'dance 2.png' dance-2/reference.png"
    assert table()["Dance 2.MP4"] == f"{jobs}/Dance 2.MP4: a job is a folder; make one of the two files there: {how}"
    assert "mv alone.heic alone/reference.heic, and put a video there as driving.mp4" in table()["alone.heic"]
    assert tick() == []
    assert all(reason in tick.said for reason in table().values())
    assert len(instance.fetch_materializations(dg.AssetKey("rejected_folders"), limit=10).records) == 1

    subprocess.run(how, shell=True, check=True, cwd=jobs)
    assert tick() == [["dance-2"]]
    assert table().keys() == {"alone.heic", "notes.txt"}


def test_files_that_are_being_copied_are_not_loose_files(tmp_path):
    (tmp_path / "dance.mp4").write_bytes(b"half")
    now = time.time()
    assert not loose_files(tmp_path, now - 10) and loose_files(tmp_path, now + 10)
    for number in range(150):
        (tmp_path / f"{number}.mp4").touch()
    assert len(loose_files(tmp_path, now + 10)) == 101


def test_partitions_of_removed_folders_are_deleted_unless_there_is_output(drop, tick, instance, data_root):
    for key in ("bare", "video", "clips", "history", "queued"):
        drop(key)
    tick()
    (data_root / "videos" / "video").mkdir(parents=True)
    (data_root / "clips" / "clips").mkdir(parents=True)
    instance.report_runless_asset_event(dg.AssetMaterialization("generated_video", partition="history"))
    instance.add_run(
        dg.DagsterRun(job_name="x", tags={"dagster/partition": "queued"}, status=dg.DagsterRunStatus.STARTED)
    )
    shutil.rmtree(data_root / "jobs")
    assert isinstance(drop_folder(dg.build_sensor_context(instance=instance)), dg.SkipReason), "not mounted"
    (data_root / "jobs").mkdir()
    tick()
    assert instance.get_dynamic_partitions("jobs") == ["clips", "history", "queued", "video"]


def test_jobs_that_arrive_together_share_runs_most_urgent_first(drop, tick, monkeypatch):
    monkeypatch.setenv("WAN_DROP_MAX_RUNS_PER_TICK", "2")
    monkeypatch.setenv("WAN_DROP_MAX_JOBS_PER_RUN", "2")
    for key in "abcde":
        drop(key, priority=5 if key == "d" else 0)
    assert tick() == [["d", "a"], ["b", "c"]]
    assert tick() == [["e"]]
    for key in "bcd":
        drop(key, b"changed")
    assert tick() == [["d"], ["b", "c"]], "a lies between d and b, and was not changed"


def test_few_jobs_are_started_at_once(drop, tick, monkeypatch):
    monkeypatch.setattr(sensors, "STARTED", 3)
    monkeypatch.setenv("WAN_DROP_MAX_JOBS_PER_RUN", "2")
    for key in "abcd":
        drop(key)
    assert [tick(), tick()] == [[["a", "b"]], [["c", "d"]]]
    monkeypatch.setenv("WAN_DROP_MAX_JOBS_PER_RUN", "4")
    for key in "efgh":
        drop(key)
    assert tick() == [["e", "f", "g", "h"]], "one run at least"


def test_jobs_wait_for_the_weights(drop, tick, instance, monkeypatch):
    monkeypatch.delenv("WAN_CHECKPOINT_DIR")
    environment.cache_clear()
    drop("one")
    assert tick() == [] and instance.get_dynamic_partitions("jobs") == ["one"]
    assert "Materialize `weight_snapshot`" in tick.said


def test_a_changed_job_is_observed(drop, tick, instance):
    drop("one")
    tick()
    assert not instance.fetch_observations(dg.AssetKey("job_inputs"), limit=9).records
    drop("one", b"changed")
    tick()
    assert len(instance.fetch_observations(dg.AssetKey("job_inputs"), limit=9).records) == 1


def test_contents_are_read_for_a_second_at_most(drop, tick, monkeypatch):
    monkeypatch.setattr(sensors, "READING_SECONDS", 0)
    monkeypatch.setattr(sensors.time, "monotonic", iter(range(99)).__next__)
    drop("one")
    drop("two")
    assert tick() == [] and "2 to be read" in tick.said


def test_groups_have_no_gaps():
    def ask(key: str, priority: int = 0) -> JobVersion:
        return JobVersion(key, "animate", priority, content="content", inputs="inputs", settings="settings")

    def keys(jobs, most) -> list[list[str]]:
        return [[job.key for job in run] for run in group(jobs, "abcdefgh", most)]

    assert keys([], 3) == []
    assert keys(map(ask, "abcdefgh"), 3) == [list("abc"), list("def"), list("gh")]
    assert keys(map(ask, "hgfdba"), 8) == [list("ab"), list("d"), list("fgh")]
    assert keys([*map(ask, "abd"), ask("g", 1)], 8) == [list("g"), list("ab"), list("d")]


def test_a_job_to_be_looked_at_gets_only_its_clips(drop, tick, instance):
    """Each in a run of its own. Its video is started when `review` is removed."""
    for key in ("a", "b", "c"):
        (drop(key) / "job.yaml").write_text(f"review: {key != 'c'}")
    assert tick() == [["a"], ["b"], ["c"]]
    assert tick.jobs == ["make_clips", "make_clips", "make_videos"]
    assert tick() == []
    (environment().jobs_root / "a" / "job.yaml").unlink()
    assert tick() == [["a"]] and tick.jobs == ["make_videos"]
