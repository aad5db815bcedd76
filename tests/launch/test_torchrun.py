"""The client against real torchrun processes and the real worker; only the engine is a stand-in."""

import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import dagster as dg
import psutil
import pytest

from wan_orchestration.launch import torchrun
from wan_orchestration.protocol import leases

HERE = Path(__file__).parent
DEFINITIONS = HERE / "stand_in_definitions.py"
DEADLINE = 15.0
"""Seconds in which all processes must end after their step."""


@pytest.fixture
def job(tmp_path, monkeypatch):
    """Selects what the stand-in engine does, and where it writes its process ids."""

    # The definitions change it; this restores it.
    monkeypatch.setattr(torchrun, "WORKER", torchrun.WORKER)

    def choose(name: str) -> Path:
        monkeypatch.setenv("STAND_IN_FOLDER", str(tmp_path))
        monkeypatch.setenv("STAND_IN_JOBS", name)
        monkeypatch.setenv("PYTHONPATH", str(HERE))
        monkeypatch.setenv("TMPDIR", str(tmp_path))
        monkeypatch.setenv("WAN_GPUS_LEASE_FOLDER", str(tmp_path / "leases"))
        monkeypatch.setattr(tempfile, "tempdir", None)
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        return tmp_path

    return choose


def materialize(tmp_path: Path) -> tuple[dg.ExecuteInProcessResult, list[str]]:
    """Runs the asset in this process; returns its result and the lines of its log."""
    spec = importlib.util.spec_from_file_location("stand_in_definitions", DEFINITIONS)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with dg.DagsterInstance.local_temp(str(tmp_path), overrides={"telemetry": {"enabled": False}}) as instance:
        result = dg.materialize(
            [module.launched], instance=instance, resources=module.defs.resources, raise_on_error=False
        )
        return result, [entry.user_message for entry in instance.all_logs(result.run_id)]


def start_step(tmp_path: Path) -> subprocess.Popen:
    """Materializes the asset in a process of its own."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "dagster.yaml").write_text("telemetry: {enabled: false}")
    command = [sys.executable, "-m", "dagster", "asset", "materialize", "-f", str(DEFINITIONS), "--select", "launched"]
    with (tmp_path / "log").open("w") as log:
        return subprocess.Popen(command, env={**os.environ, "DAGSTER_HOME": str(home)}, stdout=log, stderr=log)


def failure(result: dg.ExecuteInProcessResult) -> str:
    (event,) = [event for event in result.all_events if event.is_step_failure]
    cause = event.step_failure_data.error.cause
    assert cause.cls_name == "WorkerDied"
    return cause.message


def appears(file: Path, seconds: float = 60) -> list[int]:
    """The process ids in `file`, once it is there."""
    end = time.monotonic() + seconds
    while not file.exists():
        assert time.monotonic() < end, f"{file} did not appear"
        time.sleep(0.1)
    return [int(pid) for pid in file.read_text().split()]


def alive(pids: list[int]) -> list[int]:
    found = []
    for pid in pids:
        try:
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                found.append(pid)
        except psutil.NoSuchProcess:
            continue
    return found


def all_end(pids: list[int], seconds: float = DEADLINE) -> bool:
    end = time.monotonic() + seconds
    while alive(pids) and time.monotonic() < end:
        time.sleep(0.1)
    return not alive(pids)


def test_reports_progress_and_survives_much_output(job):
    folder = job("succeed")
    result, log = materialize(folder)
    assert result.success
    assert any(line.startswith(("succeed: starting", "succeed: segment 1 of 1, step ")) for line in log)
    assert f"threads: {len(os.sched_getaffinity(0))}" in log
    assert not list(folder.glob(f"wan-launches-{os.geteuid()}/*")), "the request's folder is still there"


@pytest.mark.parametrize("name, ending", [("crash", "ended with exit code 1"), ("mute", "was done")])
def test_a_worker_without_a_result_fails_in_words(job, name, ending):
    result, _ = materialize(job(name))
    assert f"The worker {ending} before it had a result for {name}" in failure(result)


def test_the_worker_dies_with_torchrun(job):
    folder = job("stubborn")
    killed = []

    def kill_agent():
        agent, worker = appears(folder / "pids")
        os.kill(agent, signal.SIGKILL)
        killed.append(worker)

    thread = threading.Thread(target=kill_agent)
    thread.start()
    result, _ = materialize(folder)
    thread.join()
    assert all_end(killed)
    assert "before it had a result for stubborn" in failure(result)


def test_a_hung_worker_logs_its_stacks_and_is_killed(job, monkeypatch):
    monkeypatch.setenv("STAND_IN_STALL", "12")
    folder = job("stubborn")
    result, log = materialize(folder)
    assert "The worker hung: stubborn made no progress for 12 s" in failure(result)
    (stacks,) = [line for line in log if line.startswith("The worker hangs here:\nrank 0:")]
    assert "in stubborn" in stacks
    assert all_end(appears(folder / "pids"))


def test_a_worker_that_hangs_after_its_result(job, monkeypatch):
    monkeypatch.setenv("STAND_IN_STALL", "12")
    result, log = materialize(job("linger"))
    assert result.success
    assert any(line.startswith("The worker had all results, but hung for 12 s") for line in log)


@pytest.mark.parametrize("jobs, lines", [("succeed-a succeed-b succeed-c", 2), ("succeed-a", 1)])
def test_several_processes_divide_the_jobs(job, monkeypatch, jobs, lines):
    monkeypatch.setenv("STAND_IN_PROCESSES", "2")
    monkeypatch.setenv("STAND_IN_SLOTS", "2")
    result, log = materialize(job(jobs))
    assert result.success
    (line,) = [line for line in log if line.startswith("Generates ")]
    apart = "one video on each of 2 devices (3 videos, 2 devices)"
    together = "each video on 2 devices together (1 videos, 2 devices)"
    assert line == f"Generates {apart if lines == 2 else together}."
    assert len({line for line in log if line.startswith("devices: ")}) == lines


@pytest.mark.parametrize(
    "name, number",
    [("stubborn-with-child", signal.SIGTERM), ("stubborn", signal.SIGKILL)],
)
def test_nothing_survives_the_step(job, tmp_path, name, number):
    folder = job(name)
    step = start_step(tmp_path)
    pids = appears(folder / "pids")
    assert is_leased(tmp_path)
    step.send_signal(number)
    assert all_end([step.pid, *pids]), (tmp_path / "log").read_text()
    step.wait()
    end = time.monotonic() + DEADLINE
    while is_leased(tmp_path):
        assert time.monotonic() < end


def is_leased(tmp_path: Path) -> bool:
    def on_wait(message: str):
        raise TimeoutError(message)

    try:
        with leases.lease(tmp_path / "leases", ["cpu-0"], 1, "test", on_wait):
            return False
    except TimeoutError as error:
        assert "cpu-0 is held by run " in str(error)
        return True
