"""Jobs with `review: true`: their video waits for a person."""

import dagster as dg
import pytest

from wan_orchestration.cli.run import _was_looked_at
from wan_orchestration.defs.batch.stale import stale_jobs
from wan_orchestration.jobs.folder import Job
from wan_orchestration.settings.environment import environment


@pytest.fixture
def run(instance, repository, data_root, tiny_snapshot, monkeypatch):
    """Runs a Dagster job for one of our jobs."""
    monkeypatch.setenv("WAN_CHECKPOINT_DIR", str(tiny_snapshot))
    environment.cache_clear()

    def execute(name: str, key: str, **tags: str) -> dg.ExecuteInProcessResult:
        job = repository.get_job(name)
        return job.execute_in_process(instance=instance, partition_key=key, tags=tags, raise_on_error=False)

    return execute


def test_a_video_waits_until_a_person_starts_it(make_job, run, instance, repository):
    make_job("look", yaml="review: true")
    make_job("asked")
    make_job("other")
    instance.add_dynamic_partitions("jobs", ["look", "asked", "other"])
    assert stale_jobs(instance).waiting == ["look"], "there are no clips yet"
    first = run("make_clips", "look")
    assert first.success and instance.get_run_by_id(first.run_id).tags["wan/state"] == "ready"
    assert run("make_clips", "asked", **{"wan/review": "wanted"}).success
    assert run("make_clips", "asked").success, "again, in the UI"
    assert run("make_clips", "other").success
    looked_at = [
        _was_looked_at(instance, Job.open(environment().jobs_root / key)) for key in ("look", "asked", "other")
    ]
    assert looked_at == [True, True, False], "wan-animate run takes such clips as they are"
    found = stale_jobs(instance)
    assert (found.waiting, [job.key for job in found.jobs]) == (["look", "asked"], ["other"])
    checks = instance.event_log_storage.get_asset_check_execution_history(
        dg.AssetCheckKey(dg.AssetKey("preprocessed_clips"), "skeleton"), limit=9
    )
    assert len(checks) == 4, "the clips are checked although make_clips has no checks"

    # A person has started it, and it was stopped.
    video = repository.get_job("make_videos")
    instance.report_run_canceled(instance.create_run_for_job(video, tags={"dagster/partition": "look"}))
    assert [job.key for job in stale_jobs(instance).jobs] == ["look", "other"]


def test_a_look_that_a_request_asked_for(make_job, run, instance, repository, reason):
    folders = {key: make_job(key) for key in ("failed", "changed")}
    instance.add_dynamic_partitions("jobs", list(folders))
    clips, asked = repository.get_job("make_clips"), {"wan/review": "wanted"}
    instance.report_run_canceled(instance.create_run_for_job(clips, tags={"dagster/partition": "failed", **asked}))
    assert run("make_clips", "changed", **asked).success
    with (folders["changed"] / "src_ref.png").open("ab") as picture:
        picture.write(b"\0")
    assert stale_jobs(instance).waiting == ["failed", "changed"], "nobody has seen their clips"

    started = run("make_videos", "changed", **{"wan/review": "done"})
    assert reason(started) == "changed: it has changed since its clips were looked at; make the clips again"
