"""A real `dagster dev` over a drop folder: sensor, queue, runs with the real engine. Minutes: run with -m heavy."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from deployment import Deployment

pytestmark = pytest.mark.heavy


@pytest.fixture
def deployment(tmp_path, tiny_snapshot) -> Iterator[Deployment]:
    deployment = Deployment(tmp_path, WAN_CHECKPOINT_DIR=str(tiny_snapshot), WAN_DEFAULT_SAMPLING_STEPS="1")
    try:
        yield deployment
    finally:
        deployment.stop()


def slowly(source: Path, target: Path) -> None:
    """Copies a folder as a slow line does, a piece at a time, under rsync's names for what is not whole."""
    target.mkdir()
    for file in sorted(source.iterdir()):
        part = target / f".{file.name}.a1B2c3"
        with part.open("wb") as copy:
            content = file.read_bytes()
            for start in range(0, len(content), len(content) // 4 + 1):
                copy.write(content[start : start + len(content) // 4 + 1])
                copy.flush()
                time.sleep(0.7)
        shutil.copystat(file, part)
        part.rename(target / file.name)


def test_what_is_dropped_becomes_a_video_once_whatever_is_killed(deployment, make_job):
    """Slow copies, jobs that come together, the daemon killed in the middle, a job changed meanwhile."""
    deployment.start()
    jobs = {key: make_job(key, yaml=f"generate: {{seed: {seed}}}") for seed, key in enumerate(("slow", *"abc"))}
    slowly(jobs["slow"], deployment.jobs / "slow")
    copied = time.time()
    (run,) = deployment.wait(lambda: deployment.runs("slow"), 60)
    started = deployment.wait(lambda: deployment.instance.get_run_record_by_id(run.run_id).start_time, 60)
    print(f"The run began {started - copied:.1f} s after the last byte.")

    for key in "abc":
        shutil.copytree(jobs[key], deployment.jobs / key)
    shutil.copytree(jobs["a"], deployment.jobs / "Not A Key")
    deployment.wait(lambda: deployment.runs("c"), 60)
    deployment.daemon().kill()
    deployment.stop()
    (deployment.jobs / "b" / "job.yaml").write_text("generate: {seed: 99}")
    (deployment.jobs / "Not A Key").rename(deployment.jobs / "a-key")
    deployment.start()

    seeds = {"slow": 0, "a": 1, "b": 99, "c": 3, "a-key": 1}

    def all_made() -> bool:
        results = {key: deployment.result(key) for key in seeds}
        made = {key: result.settings.seed for key, result in results.items() if result and result.settings}
        return made == seeds and not any(not run.is_finished for run in deployment.instance.get_runs())

    deployment.wait(all_made, 400)
    time.sleep(12)
    failed = deployment.instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE]))
    reasons = [
        entry.dagster_event.step_failure_data.error_display_string
        for run in failed
        for entry in deployment.instance.all_logs(run.run_id, of_type=dg.DagsterEventType.STEP_FAILURE)
        if entry.dagster_event
    ]
    assert not failed, reasons
    videos = sorted(
        record.partition_key or ""
        for record in deployment.instance.fetch_materializations(dg.AssetKey("generated_video"), limit=99).records
    )
    # The job that was changed may have been made before.
    assert videos in (sorted(seeds), sorted([*seeds, "b"]))
