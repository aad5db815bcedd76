"""The private parts of Dagster that the run launcher and the API use.

Any release of Dagster may change them, so pyproject.toml pins a minor version. tests/launch/test_dagster_internals.py
fails when one of them changes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg
from dagster._core.definitions.reconstruct import ReconstructableRepository
from dagster._core.launcher.base import CheckRunHealthResult, WorkerStatus
from dagster._core.remote_origin import (
    ManagedGrpcPythonEnvCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.storage.tags import GRPC_INFO_TAG, WILL_RETRY_TAG
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin

__all__ = ["GRPC_INFO_TAG", "WILL_RETRY_TAG", "AssetRuns", "CheckRunHealthResult", "WorkerStatus"]

# CheckRunHealthResult, WorkerStatus: what a run launcher's health check returns; Dagster exports only the launcher.
# GRPC_INFO_TAG: the code server of this machine puts this tag on the runs that it starts.
# WILL_RETRY_TAG: "false" stops the daemon from retrying a failed run. There is no public call for that.


class AssetRuns:
    """Creates runs of assets or of jobs as Dagster's webserver does, but in this process and without a code server.

    Dagster has no public call for that: `dagster job launch` starts a code server, and GraphQL needs a webserver.
    """

    def __init__(
        self, instance: dg.DagsterInstance, module: str, attribute: str, location: str, assets: Sequence[dg.AssetKey]
    ) -> None:
        """`attribute` of `module` holds the definitions; `location` is the code location's name in workspace.yaml."""
        self.instance, self.assets = instance, set(assets)
        # The run's process loads the code by the origin of this repository, the daemon by the remote one.
        self._repository = ReconstructableRepository.for_module(module, attribute)
        self._definition = self._repository.get_definition()
        origin = ManagedGrpcPythonEnvCodeLocationOrigin(LoadableTargetOrigin(module_name=module), location)
        self._remote_origin = RemoteRepositoryOrigin(origin, self._definition.name)
        implicit = self._definition.get_implicit_job_def_for_assets(assets)
        assert implicit is not None
        self._implicit_job = implicit

    def create(
        self, run_id: str, config: Mapping[str, Any], tags: Mapping[str, str], job: str | None = None
    ) -> dg.DagsterRun:
        """Create a run that is not in the queue yet, of the assets, or of the job with this name."""
        name = job or self._implicit_job.name
        return self.instance.create_run_for_job(
            self._definition.get_job(job) if job else self._implicit_job,
            run_id=run_id,
            run_config=config,
            tags=tags,
            asset_selection=None if job else self.assets,
            remote_job_origin=RemoteJobOrigin(self._remote_origin, name),
            job_code_origin=self._repository.get_reconstructable_job(name).get_python_origin(),
        )

    def enqueue(self, run_id: str) -> None:
        """Put a created run into the queue; does nothing if it was queued before."""
        # No workspace is needed: the queue's coordinator reads only the run.
        self.instance.submit_run(run_id, workspace=None)  # pyright: ignore[reportArgumentType]
