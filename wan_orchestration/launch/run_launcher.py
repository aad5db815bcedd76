"""The instance's run launcher: Dagster's own, and runs whose process is gone do not stay started for ever."""

import socket

import psutil
from dagster import DagsterEventType, DagsterRun, DefaultRunLauncher
from dagster._core.launcher.base import CheckRunHealthResult, WorkerStatus

HOST_TAG = "host"
"""Run tag: the machine that works on it."""
LAUNCHED_HERE_TAG = ".dagster/grpc_info"


class LocalRunLauncher(DefaultRunLauncher):
    """Runs as processes of the code server on this machine.

    Dagster's launcher hears of a process that dies, but not if the code server dies first: after a restart or a power
    cut such a run would stay started, and hold up the queue. Here run monitoring looks at the process itself.
    """

    @property
    def supports_check_run_worker_health(self) -> bool:
        return True

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        here = LAUNCHED_HERE_TAG in run.tags or run.tags.get(HOST_TAG) == socket.gethostname()
        # The last process: a run in a shell has none but that of its steps.
        for entry in reversed(
            self._instance.all_logs(run.run_id, of_type=DagsterEventType.ENGINE_EVENT) if here else []
        ):
            assert entry.dagster_event
            pid = entry.dagster_event.engine_event_data.metadata.get("pid")
            if pid is None:
                continue
            if _alive(int(str(pid.value)), entry.timestamp):
                break
            return CheckRunHealthResult(WorkerStatus.FAILED, f"its process, {pid.value}, is gone")
        return CheckRunHealthResult(WorkerStatus.RUNNING)


def _alive(pid: int, since: float) -> bool:
    """Whether the process that had this id at that Unix time still runs."""
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and process.create_time() <= since + 1
    except psutil.NoSuchProcess:
        return False
