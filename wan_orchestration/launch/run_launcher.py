"""The instance's run launcher: extends Dagster's own, to notice runs whose process is gone."""

import socket

from dagster import DagsterEventType, DagsterRun, DefaultRunLauncher

from wan_orchestration.launch.dagster_internals import GRPC_INFO_TAG, CheckRunHealthResult, WorkerStatus
from wan_orchestration.launch.processes import is_running

HOST_TAG = "host"
"""Run tag: the machine that executes the run."""


class LocalRunLauncher(DefaultRunLauncher):
    """Starts runs as processes of the code server on this machine.

    Dagster's launcher learns from the code server that a run's process died. If the code server died first, after a
    restart or a power cut, the run would stay started and hold up the queue. So this launcher lets run monitoring check
    the process itself.
    """

    @property
    def supports_check_run_worker_health(self) -> bool:
        return True

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        if GRPC_INFO_TAG not in run.tags and run.tags.get(HOST_TAG) != socket.gethostname():
            # Nothing is known of processes on other machines.
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        # The newest event with a process id counts: a run that a shell started has only the ids of its steps.
        for entry in reversed(self._instance.all_logs(run.run_id, of_type=DagsterEventType.ENGINE_EVENT)):
            assert entry.dagster_event
            pid = entry.dagster_event.engine_event_data.metadata.get("pid")
            if pid is None:
                continue
            if is_running(int(str(pid.value)), entry.timestamp):
                break
            return CheckRunHealthResult(WorkerStatus.FAILED, f"its process, {pid.value}, is gone")
        return CheckRunHealthResult(WorkerStatus.RUNNING)
