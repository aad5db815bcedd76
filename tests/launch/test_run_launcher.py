"""The run launcher notices runs whose process is gone."""

import os
import socket
import subprocess
import time

import dagster as dg
import pytest
from dagster._core.events import EngineEventData

from wan_orchestration.launch.dagster_internals import GRPC_INFO_TAG
from wan_orchestration.launch.run_launcher import HOST_TAG


@pytest.fixture
def instance(tmp_path):
    launcher = {"module": "wan_orchestration.launch.run_launcher", "class": "LocalRunLauncher"}
    with dg.DagsterInstance.local_temp(str(tmp_path), overrides={"run_launcher": launcher}) as instance:
        yield instance


@pytest.fixture
def health(instance):
    def of(pid: int | None, **tags: str) -> str:
        run = instance.add_run(dg.DagsterRun(job_name="x", status=dg.DagsterRunStatus.STARTED, tags=tags))
        if pid is not None:
            instance.report_engine_event("Started process", run, EngineEventData.in_process(pid))
        return instance.run_launcher.check_run_worker_health(run).status.value

    return of


def test_a_run_is_healthy_while_its_process_runs(health):
    ended = subprocess.Popen(["true"])
    assert health(os.getpid(), **{GRPC_INFO_TAG: "{}"}) == "RUNNING"
    time.sleep(0.2)
    assert health(ended.pid, **{GRPC_INFO_TAG: "{}"}) == "FAILED", "a zombie"
    ended.wait()
    assert health(ended.pid, **{GRPC_INFO_TAG: "{}"}) == "FAILED"
    assert health(ended.pid, **{HOST_TAG: socket.gethostname()}) == "FAILED", "started in a shell of this machine"
    assert health(ended.pid, **{HOST_TAG: "elsewhere"}) == "RUNNING", "nothing is known of other machines' processes"
    assert health(None, **{GRPC_INFO_TAG: "{}"}) == "RUNNING", "not yet started"


def test_a_process_id_that_another_process_reuses(instance):
    run = instance.add_run(dg.DagsterRun(job_name="x", status=dg.DagsterRunStatus.STARTED, tags={GRPC_INFO_TAG: "{}"}))
    instance.report_engine_event("Started process", run, EngineEventData.in_process(os.getpid()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("psutil.Process.create_time", lambda process: time.time() + 60)
        assert instance.run_launcher.check_run_worker_health(run).status.value == "FAILED"
