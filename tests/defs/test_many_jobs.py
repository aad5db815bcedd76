"""One run over several jobs, with the real engine and weights of no size."""

import dagster as dg
import pytest

from wan_orchestration.settings.environment import environment
from wan_orchestration.video.reader import probe

ASSET = dg.AssetKey("generated_video")
SETTINGS = {"generated_video": {"config": {"clip_len": 5, "sampling_steps": 1}}}


@pytest.fixture
def run_over(data_root, instance, repository, tiny_snapshot, monkeypatch):
    """Generates the videos of all partitions from one to another in a single run."""
    monkeypatch.setenv("WAN_CHECKPOINT_DIR", str(tiny_snapshot))
    environment.cache_clear()

    def run(first: str, last: str, **tags: str) -> dg.ExecuteInProcessResult:
        bounds = {"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last}
        return repository.get_implicit_job_def_for_assets([ASSET]).execute_in_process(
            instance=instance,
            asset_selection=[ASSET],
            tags=bounds | tags,
            run_config={"ops": SETTINGS},
            raise_on_error=False,
        )

    return run


def test_six_jobs_of_which_one_is_broken(make_job, make_raw_job, instance, run_over, data_root):
    for key, priority in [("a", 0), ("b", 2), ("d", 0), ("e", 9)]:
        make_job(key, yaml=f"priority: {priority}")
    (make_job("c") / "src_pose.mp4").write_bytes(b"no video")
    make_raw_job("f", confidence=0.9)
    instance.add_dynamic_partitions("jobs", list("abcdef"))

    result = run_over("a", "f")
    assert not result.success
    (failed,) = [event for event in result.all_events if event.is_step_failure]
    said = failed.step_failure_data.user_failure_data.description
    assert said.startswith("1 of 6 jobs failed: c\n") and "src_pose.mp4" in said
    assert not any(event.is_step_up_for_retry for event in result.all_events)

    made = [
        event.partition for event in result.all_events if event.is_step_materialization and event.asset_key == ASSET
    ]
    assert made == ["e", "b", "a", "d", "f"], "by priority, each as it was finished"
    log = [entry.user_message for entry in instance.all_logs(result.run_id)]
    assert len([line for line in log if "loading the weights took" in line]) == 1
    assert {"wan/devices": "cpu-0"}.items() <= instance.get_run_by_id(result.run_id).tags.items()
    assert "wan/snapshot" in instance.get_run_by_id(result.run_id).tags
    segments = [record.asset_observation for record in instance.fetch_observations(ASSET, limit=99).records]
    assert sorted(segment.partition for segment in segments) == sorted([*made, "f"]), "f has two segments"
    assert sum(segment.metadata["frames"].value for segment in segments) == 4 * 5 + 6
    for key in made:
        assert probe(data_root / "videos" / key / "video.mp4").frames == (6 if key == "f" else 5)
        (record,) = instance.fetch_materializations(
            dg.AssetRecordsFilter(asset_key=ASSET, asset_partitions=[key]), limit=1
        ).records
        assert record.asset_materialization.metadata["segments"].value == (2 if key == "f" else 1)
        assert record.asset_materialization.tags["dagster/code_version"] == "1"
    checked = [
        event.event_specific_data for event in result.all_events if event.event_type_value == "ASSET_CHECK_EVALUATION"
    ]
    integrity = {(check.partition, check.passed) for check in checked if check.severity == dg.AssetCheckSeverity.ERROR}
    assert integrity == {(key, True) for key in made}
    clips = [event.partition for event in result.all_events if event.asset_key == dg.AssetKey("preprocessed_clips")]
    assert clips == ["e", "b", "a", "d", "f"]


def test_make_videos_checks_videos_and_a_retry_resumes(make_job, instance, repository, run_over, data_root):
    """The Dagster job that the sensor and the batch start."""
    for key in "ab":
        make_job(key)
    instance.add_dynamic_partitions("jobs", ["a", "b"])
    first = repository.get_job("make_videos").execute_in_process(
        instance=instance,
        tags={"dagster/asset_partition_range_start": "a", "dagster/asset_partition_range_end": "b"},
        run_config={"ops": SETTINGS},
    )
    assert first.success
    tags = instance.get_run_by_id(first.run_id).tags
    assert {"job/a", "job/b", "mode", "host"} <= set(tags)
    checked = [
        event.event_specific_data for event in first.all_events if event.event_type_value == "ASSET_CHECK_EVALUATION"
    ]
    integrity = {(check.partition, check.passed) for check in checked if check.severity == dg.AssetCheckSeverity.ERROR}
    assert integrity == {("a", True), ("b", True)}

    results = [data_root / "videos" / key / "result.json" for key in "ab"]
    made = [result.read_bytes() for result in results]
    again = run_over("a", "b", **{"dagster/root_run_id": first.run_id, "dagster/parent_run_id": first.run_id})
    log = [entry.user_message for entry in instance.all_logs(again.run_id)]
    assert "a: already finished by an earlier try of this run" in log
    assert [result.read_bytes() for result in results] == made
