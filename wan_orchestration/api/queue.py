"""Puts runs into Dagster's queue from a process that is neither its webserver nor its daemon.

No server of Dagster is needed to accept a job: runs are created from the definitions themselves. The daemon starts
them; without a daemon, they wait in the queue.
"""

import fcntl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import dagster as dg

from wan_orchestration.api.problems import Problem
from wan_orchestration.defs.partitions import register
from wan_orchestration.launch.dagster_internals import AssetRuns
from wan_orchestration.settings.environment import Environment

MODULE = "wan_orchestration.definitions"
LOCATION = "wan_orchestration"
"""The code location's name in workspace.yaml, by which the daemon finds the code."""

ASSETS = [dg.AssetKey(name) for name in ("weight_snapshot", "preprocessed_clips", "generated_video")]

SUBMITTED_BY_API = {"wan/submitted_by": "api"}
"""Tag of the runs that the API creates."""

MAX_WAITING = 16
"""Requests that may hold the lock or wait for it at once; with SQLite, a submission takes half a second."""


class RunQueue:
    """Creates runs and puts them into the queue, one at a time."""

    def __init__(self, instance: dg.DagsterInstance, env: Environment) -> None:
        self.instance, self.env = instance, env
        self._runs = AssetRuns(instance, MODULE, "definitions", LOCATION, ASSETS)
        self._waiting = threading.BoundedSemaphore(MAX_WAITING)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lets one request at a time read the queue and add to it, across all servers of a data folder.

        Problem 429: too many requests wait already.
        """
        if not self._waiting.acquire(blocking=False):
            raise Problem(429, "too many submissions at once; try again in a moment", headers={"Retry-After": "3"})
        try:
            self.env.data_root.mkdir(parents=True, exist_ok=True)
            with (self.env.data_root / ".submissions.lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
        finally:
            self._waiting.release()

    def create(
        self, key: str, run_id: str, config: Mapping[str, Any], tags: Mapping[str, str], job: str | None = None
    ) -> None:
        """Create the job's run without queueing it yet. The `drop_folder` sensor then starts no other.

        The run makes clips and video, or what the Dagster job with the name `job` makes.
        """
        self._runs.create(run_id, config, {**SUBMITTED_BY_API, **tags, "dagster/partition": key}, job)

    def submit(self, key: str, run_id: str) -> None:
        """Put a job's run into the queue; does nothing if it was queued before."""
        # The job's folder must exist by now: the sensor removes partitions without a folder.
        register(self.instance, key)
        self._runs.enqueue(run_id)

    def recover(self) -> None:
        """Queue the runs that a killed server created but did not queue. Deletes those whose folder is missing."""
        with self.locked():
            created = dg.RunsFilter(statuses=[dg.DagsterRunStatus.NOT_STARTED], tags=SUBMITTED_BY_API)
            for run in self.instance.get_runs(created):
                key = run.tags["dagster/partition"]
                if (self.env.jobs_root / key).is_dir():
                    self.submit(key, run.run_id)
                else:
                    self.instance.delete_run(run.run_id)
