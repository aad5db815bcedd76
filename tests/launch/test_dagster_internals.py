"""Dagster's private parts are as wan_orchestration/launch/dagster_internals.py expects them."""

import sys
import tomllib
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
import pytest

ROOT = Path(__file__).parents[2]
DEFINITIONS = """
import dagster as dg

@dg.asset
def video():
    return 1

definitions = dg.Definitions([video])
"""


@contextmanager
def naming_the_pin() -> Iterator[None]:
    """Adds to a failure which Dagster is installed and which one pyproject.toml allows."""
    try:
        yield
    except Exception as error:
        dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
        (pin,) = [dependency for dependency in dependencies if dependency.startswith("dagster>")]
        pytest.fail(
            f"{type(error).__name__}: {error}\nA private part of Dagster {dg.__version__} is not as expected. Adapt "
            f"wan_orchestration/launch/dagster_internals.py, or narrow the range in pyproject.toml: {pin}"
        )


def test_the_run_launchers_parts():
    with naming_the_pin():
        from wan_orchestration.launch.dagster_internals import GRPC_INFO_TAG, CheckRunHealthResult, WorkerStatus
        from wan_orchestration.launch.run_launcher import LocalRunLauncher

        result = CheckRunHealthResult(WorkerStatus.FAILED, "why")
        assert (result.status, result.msg) == (WorkerStatus.FAILED, "why")
        assert WorkerStatus.RUNNING.value == "RUNNING" and GRPC_INFO_TAG == ".dagster/grpc_info"
        # LocalRunLauncher overrides these two; the base reads its instance from `_instance`.
        for name in ("supports_check_run_worker_health", "check_run_worker_health", "_instance"):
            assert hasattr(dg.DefaultRunLauncher, name), name
        assert LocalRunLauncher().supports_check_run_worker_health


def test_a_run_is_created_and_queued(tmp_path, monkeypatch):
    (tmp_path / "internals_definitions.py").write_text(DEFINITIONS)
    # At the end: Dagster ignores the first entry.
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    queue = {"run_coordinator": {"module": "dagster.core.run_coordinator", "class": "QueuedRunCoordinator"}}
    with naming_the_pin(), dg.DagsterInstance.local_temp(str(tmp_path), overrides=queue) as instance:
        from wan_orchestration.launch.dagster_internals import WILL_RETRY_TAG, AssetRuns

        runs = AssetRuns(instance, "internals_definitions", "definitions", "somewhere", [dg.AssetKey("video")])
        run_id = str(uuid.uuid4())
        run = runs.create(run_id, {}, {"a": "b"})
        assert (run.run_id, run.status, run.tags["a"]) == (run_id, dg.DagsterRunStatus.NOT_STARTED, "b")
        assert run.asset_selection == {dg.AssetKey("video")}
        assert run.remote_job_origin.repository_origin.code_location_origin.location_name == "somewhere"
        assert run.job_code_origin.repository_origin.executable_path == sys.executable
        for _ in range(2):
            runs.enqueue(run_id)
        assert instance.get_run_by_id(run_id).status is dg.DagsterRunStatus.QUEUED
        instance.report_run_failed(run)
        instance.add_run_tags(run_id, {WILL_RETRY_TAG: "true"})
        assert instance.get_run_by_id(run_id).is_complete_and_waiting_to_retry
