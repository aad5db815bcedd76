"""A data root of its own, and a Dagster instance of its own, for each test."""

from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import pytest

from wan_orchestration.definitions import definitions
from wan_orchestration.settings.environment import environment


@pytest.fixture
def data_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """WAN_DATA_ROOT, where `make_job` puts its folders."""
    monkeypatch.setenv("WAN_DATA_ROOT", str(tmp_path))
    environment.cache_clear()
    yield tmp_path
    environment.cache_clear()


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    home = tmp_path / "dagster"
    home.mkdir()
    with dg.DagsterInstance.local_temp(str(home), overrides={"telemetry": {"enabled": False}}) as instance:
        yield instance


@pytest.fixture(scope="session")
def repository() -> dg.RepositoryDefinition:
    return definitions().get_repository_def()


@pytest.fixture
def materialize(data_root, instance, repository) -> Callable[..., dg.ExecuteInProcessResult]:
    """Materializes assets by name for a job, as `dagster asset materialize` does."""

    def run(*names: str, key: str | None = None, config: dict | None = None) -> dg.ExecuteInProcessResult:
        if key is not None:
            instance.add_dynamic_partitions("jobs", [key])
        keys = [dg.AssetKey(name) for name in names]
        job = repository.get_implicit_job_def_for_assets(keys)
        return job.execute_in_process(
            instance=instance,
            partition_key=key,
            asset_selection=keys,
            run_config={"ops": config or {}},
            raise_on_error=False,
        )

    return run


@pytest.fixture
def reason() -> Callable[[dg.ExecuteInProcessResult], str]:
    """Says why a run's only failed step failed; the step must not have been retried."""

    def why(result: dg.ExecuteInProcessResult) -> str:
        (failed,) = [event for event in result.all_events if event.is_step_failure]
        assert not any(event.is_step_up_for_retry for event in result.all_events)
        return failed.step_failure_data.user_failure_data.description or ""

    return why
