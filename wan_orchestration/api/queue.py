"""Dagster's run queue, as seen by a process that is neither its webserver nor its daemon.

A run is made here as the webserver makes it, from the definitions themselves: no server of Dagster's is needed to take
a job in. The daemon starts the run when it is its turn; until there is a daemon, the run waits in the instance's queue.
"""

import fcntl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import dagster as dg
from dagster._core.definitions.reconstruct import ReconstructableRepository
from dagster._core.remote_origin import (
    ManagedGrpcPythonEnvCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin

from wan_orchestration.api.problems import Problem
from wan_orchestration.defs.partitions import register
from wan_orchestration.settings.environment import Environment

MODULE = "wan_orchestration.definitions"
LOCATION = "wan_orchestration"
"""As in workspace.yaml; the daemon finds the code by this name."""

ASSETS = [dg.AssetKey(name) for name in ("weight_snapshot", "preprocessed_clips", "generated_video")]

BY = {"wan/submitted_by": "api"}
"""Tag of the runs that were made here."""

WAITING = 16
"""Requests that may stand in line for the instance's database; a submission takes half a second with SQLite."""


class Queue:
    """Makes runs and puts them into the queue, one at a time."""

    def __init__(self, instance: dg.DagsterInstance, env: Environment) -> None:
        self.instance, self.env = instance, env
        repository = ReconstructableRepository.for_module(MODULE, "definitions")
        definition = repository.get_definition()
        whole = definition.get_implicit_job_def_for_assets(ASSETS)
        assert whole is not None
        self._job = whole
        location = ManagedGrpcPythonEnvCodeLocationOrigin(LoadableTargetOrigin(module_name=MODULE), LOCATION)
        self._remote = RemoteJobOrigin(RemoteRepositoryOrigin(location, definition.name), whole.name)
        self._code = repository.get_reconstructable_job(whole.name).get_python_origin()
        self._line = threading.BoundedSemaphore(WAITING)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """One request at a time looks at the queue and adds to it, also among several servers of one data folder.

        Problem 429: too many are waiting already.
        """
        if not self._line.acquire(blocking=False):
            raise Problem(429, "too many submissions at once; try again in a moment", headers={"Retry-After": "3"})
        try:
            self.env.data_root.mkdir(parents=True, exist_ok=True)
            with (self.env.data_root / ".submissions.lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
        finally:
            self._line.release()

    def create(self, key: str, run_id: str, config: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        """Make the job's run, without putting it into the queue yet. From now on the `drop_folder` sensor sees it."""
        self.instance.create_run_for_job(
            self._job,
            run_id=run_id,
            run_config=config,
            tags={**BY, **tags, "dagster/partition": key},
            asset_selection=set(ASSETS),
            remote_job_origin=self._remote,
            job_code_origin=self._code,
        )

    def submit(self, key: str, run_id: str) -> None:
        """Put a job's run into the queue; nothing happens where it is or was there already."""
        # Only once its folder is there: the sensor takes away partitions without one.
        register(self.instance, key)
        # The coordinator needs the run alone. What it is given as workspace it would hand on to a launcher.
        self.instance.submit_run(run_id, workspace=None)  # pyright: ignore[reportArgumentType]

    def recover(self) -> None:
        """Finish what a server that was killed has begun: runs that were made and not put into the queue."""
        with self.turn():
            unsubmitted = dg.RunsFilter(statuses=[dg.DagsterRunStatus.NOT_STARTED], tags=BY)
            for run in self.instance.get_runs(unsubmitted):
                key = run.tags["dagster/partition"]
                if (self.env.jobs_root / key).is_dir():
                    self.submit(key, run.run_id)
                else:
                    self.instance.delete_run(run.run_id)
