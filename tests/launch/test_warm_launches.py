"""Launches that outlive their run: real torchrun, keeper and leases, only the engine is a stand-in."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from test_torchrun import all_end, appears, job, materialize, start_step

from wan_orchestration.launch import torchrun
from wan_orchestration.protocol import launches, leases, lines
from wan_orchestration.protocol.launches import LaunchInfo

__all__ = ["job"]  # a fixture


@pytest.fixture
def warm(job, monkeypatch) -> Iterator[Callable[[str], Path]]:
    """As `job`; launches stay for a minute, and are gone after the test."""
    monkeypatch.setenv("STAND_IN_WARM", "60")
    yield job
    keepers = [launch.pid for launch in launches.running()]
    for launch in launches.running():
        launches.stop(launch, at_once=True)
    assert all_end(keepers)


def only_launch() -> LaunchInfo:
    (launch,) = launches.running(memory=True)
    return launch


def processes(launch: LaunchInfo) -> list[int]:
    """Ids of the keeper, torchrun and the ranks."""
    keeper = psutil.Process(launch.pid)
    return [launch.pid, *(child.pid for child in keeper.children(recursive=True))]


def until(what: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def test_the_next_run_takes_it_over_and_others_get_the_device(warm):
    _, first = materialize(warm("succeed-a"))
    idle = only_launch()
    assert (idle.state, idle.jobs, idle.devices, idle.run) == ("idle", 1, ["cpu-0"], None)
    assert idle.memory_bytes and idle.memory_bytes > 1e6

    folder = warm("succeed-b")
    result, second = materialize(folder)
    assert result.success and "Takes over the warm launch on cpu-0." in second
    (process,) = [line.split(",")[0] for line in first if line.startswith("process: ")]
    assert f"{process}, warm: False" in first and f"{process}, warm: True" in second
    assert only_launch().jobs == 2

    # Another program asks for the device.
    pids = processes(idle)
    asked = time.monotonic()
    with leases.lease(folder / "leases", ["cpu-0"], 1, "a test", lambda message: None):
        waited = time.monotonic() - asked
        assert not launches.running()
    assert waited < 5, "an idle launch leaves within 2 s on a quiet machine"
    assert all_end(pids)


def test_a_launch_started_otherwise_is_replaced(warm, monkeypatch):
    materialize(warm("succeed-a"))
    before = only_launch()
    monkeypatch.setenv("WAN_ENABLE_FSDP", "1")
    result, log = materialize(warm("succeed-b"))
    assert result.success and not any(line.startswith("Takes over") for line in log)
    assert only_launch().id != before.id
    assert all_end([before.pid])


def test_a_run_dies_then_the_keeper(warm, tmp_path):
    """The launch stops what the dead run asked for, and stays. Nothing survives the keeper."""
    folder = warm("patient")
    step = start_step(tmp_path)
    appears(folder / "pids")
    assert only_launch().state == "working"
    step.kill()
    step.wait()
    appears_at = folder / "cancelled"
    until(appears_at.exists)
    until(lambda: only_launch().state == "idle")
    assert only_launch().jobs == 0

    result, log = materialize(warm("succeed-after"))
    assert result.success and "Takes over the warm launch on cpu-0." in log

    pids = processes(only_launch())
    assert len(pids) == 3
    os.kill(pids[0], signal.SIGKILL)
    assert all_end(pids)
    assert not launches.running() and not list(launches.root().iterdir())
    with leases.lease(folder / "leases", ["cpu-0"], 1, "a test", lambda message: None):
        pass


def test_it_ends_with_its_owner_and_on_request(warm, monkeypatch):
    owner = subprocess.Popen(["sleep", "600"])
    monkeypatch.setattr(torchrun, "dagster_service", lambda: (owner.pid, psutil.Process(owner.pid).create_time()))
    materialize(warm("succeed-a"))
    pids = processes(only_launch())
    owner.kill()
    owner.wait()
    assert all_end(pids)
    assert not launches.running()

    monkeypatch.setattr(torchrun, "dagster_service", lambda: None)
    materialize(warm("succeed-b"))
    pids = processes(only_launch())
    assert launches.stop(only_launch())
    assert all_end(pids)


def in_child_of_another_user(folder: Path) -> str:
    """Name of the error that another user gets who connects."""
    reading, writing = os.pipe()
    if os.fork() == 0:
        try:
            os.setuid(65534)
            lines.connect(folder)
        except BaseException as error:
            os.write(writing, type(error).__name__.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answer:
        return answer.read()


def test_only_its_user_reaches_it(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    root = launches.root()
    assert root.stat().st_mode & 0o777 == 0o700
    listener = lines.listen(root)
    lines.connect(root).close()
    if os.geteuid() == 0:
        # In a child, because the identity of this process would not come back.
        assert in_child_of_another_user(root) == "PermissionError"
        root.chmod(0o777)
        assert in_child_of_another_user(root) == "PermissionError", "the kernel says who is at the other end"
    listener.close()
    root.chmod(0o755)
    with pytest.raises(PermissionError, match="expected a folder of mode 0700"):
        launches.root()
