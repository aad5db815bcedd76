"""Any process of a warm launch is killed in each of its states: nothing is left, and another run makes the same video.

Real runs with the real engine: `pytest -m heavy tests/launch/test_warm_kill_matrix.py`. As in `test_kill_matrix.py`,
but launches stay for a minute. The cases of a test follow each other, because each needs a warm launch, and the last
run of a case leaves one.
"""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from test_kill_matrix import (
    AGENT,
    GONE_SECONDS,
    KEEPER,
    RANK,
    ROOT,
    STEP,
    Unbroken,
    is_free,
    nothing_left,
    project,
    segments_finished,
    step,
    unbroken,
    video,
    wait_until,
)

from wan_orchestration.protocol import launches, leases

pytestmark = pytest.mark.heavy

__all__ = ["project", "unbroken"]  # fixtures

KILL, TERM = signal.SIGKILL, signal.SIGTERM
IDLE = [(KEEPER, KILL), (KEEPER, TERM), (AGENT, KILL), (RANK, KILL)]
TAKING_OVER = [(STEP, KILL), (KEEPER, KILL), (RANK, KILL)]
AT_WORK = [(STEP, KILL), (STEP, TERM), (KEEPER, KILL), (KEEPER, TERM), (AGENT, TERM), (RANK, KILL)]
LEAVING = [(KEEPER, True), (AGENT, False), (RANK, True)]
"""Whom, and whether the launch was asked to leave; otherwise somebody waits for its device."""
NAMES = {STEP: "step", KEEPER: "keeper", AGENT: "agent", RANK: "rank"}
TAKES_OVER = "Takes over the warm launch on cpu-0."


@pytest.fixture(autouse=True)
def warm_launches(tmp_path, monkeypatch) -> Iterator[None]:
    """Launches stay, in a folder of this test's own; none is left when the test ends."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    monkeypatch.setenv("WAN_TORCHRUN_KEEP_WARM_SECONDS", "60")
    yield
    processes = [process for one in launches.running() for process in tree(one.pid)]
    command = [sys.executable, "-m", "wan_orchestration.cli.main", "workers", "stop", "--now"]
    subprocess.run(command, check=True, cwd=ROOT)
    wait_until(lambda: nothing_left(processes), GONE_SECONDS)
    wait_until(lambda: is_free(tmp_path), GONE_SECONDS)
    assert not launches.running() and not list(launches.root().iterdir())


def tree(keeper: int) -> list[psutil.Process]:
    """The keeper, torchrun and the rank, as far as they run."""
    found = [psutil.Process(keeper)]
    with suppress(psutil.NoSuchProcess):
        while children := found[-1].children():
            found.append(children[0])
    return found


def idle_launch() -> list[psutil.Process]:
    """Waits until the only launch is idle. Returns this process as `STEP`, and the launch's three."""
    wait_until(lambda: [one.state for one in launches.running()] == ["idle"], GONE_SECONDS)
    (launch,) = launches.running()
    return [psutil.Process(), *tree(launch.pid)]


def is_gone(project: Path, processes: list[psutil.Process]) -> bool:
    """Whether nothing of a launch is left. Who asks for launches removes the folder of a killed keeper."""
    launches.running()
    return nothing_left(processes) and is_free(project) and not list(launches.root().iterdir())


def taken_over(project: Path) -> int:
    """How many runs took over a warm launch so far."""
    return (project / "log").read_text().count(TAKES_OVER)


@contextmanager
def case(name: str) -> Iterator[None]:
    started = time.monotonic()
    try:
        yield
    except BaseException as error:
        error.add_note(f"case: {name}")
        raise
    print(f"{name}: {time.monotonic() - started:.0f} s", flush=True)


def make(project: Path) -> tuple[bytes, int]:
    """Runs the asset. Returns the video, and how many of its segments were there already."""
    (project / "videos" / "dance" / "video.mp4").unlink(missing_ok=True)
    with step(project) as process:
        assert process.wait() == 0, (project / "log").read_text()
    return video(project)


def test_idle_and_leaving(project, unbroken):
    for whom, number in IDLE:
        with case(f"idle, {NAMES[whom]}, {number.name}"):
            processes = idle_launch()
            processes[whom].send_signal(number)
            wait_until(lambda gone=processes[KEEPER:]: is_gone(project, gone), GONE_SECONDS)
            # Starts a launch for the next case.
            assert make(project) == (unbroken.video, 0)
    assert taken_over(project) == 0
    kill_leaving(project, unbroken)


def test_taking_over_and_at_work(project, unbroken):
    for whom, number in TAKING_OVER:
        with case(f"taking over, {NAMES[whom]}, {number.name}"):
            before = taken_over(project)
            kill_second_run(project, unbroken, whom, number, lambda before=before: taken_over(project) > before)
    for whom, number in AT_WORK:
        with case(f"at work, {NAMES[whom]}, {number.name}"):
            kill_second_run(project, unbroken, whom, number, lambda: segments_finished(project) >= 1)


def kill_second_run(project: Path, unbroken: Unbroken, whom: int, number: int, is_time: Callable[[], bool]) -> None:
    """Starts a run that takes over the idle launch, kills a process when `is_time`, and lets the video be finished."""
    processes = idle_launch()
    (project / "videos" / "dance" / "video.mp4").unlink(missing_ok=True)
    before = taken_over(project)
    with step(project) as second:
        processes[STEP] = psutil.Process(second.pid)
        wait_until(is_time, unbroken.patience)
        finished = segments_finished(project)
        processes[whom].send_signal(number)
        if whom == STEP:
            assert second.wait() != 0
            # The launch stops at the next denoising step, and stays.
            assert [one.pid for one in idle_launch()[KEEPER:]] == [one.pid for one in processes[KEEPER:]]
        else:
            wait_until(lambda: nothing_left(processes[KEEPER:]), GONE_SECONDS)
            # The step retries, in a new launch.
            assert second.wait() == 0, (project / "log").read_text()
    if whom == STEP:
        assert segments_finished(project) >= finished
        with step(project) as third:
            assert third.wait() == 0, (project / "log").read_text()
    made, resumed = video(project)
    assert made == unbroken.video and resumed >= finished
    assert taken_over(project) - before == (2 if whom == STEP else 1)


def kill_leaving(project: Path, unbroken: Unbroken) -> None:
    """It leaves because it was asked to, or because somebody waits; then one of its processes is killed."""
    for whom, asked in LEAVING:
        with case(f"leaving {'on request' if asked else 'for a waiter'}, {NAMES[whom]}"):
            processes = idle_launch()
            (launch,) = launches.running()
            if asked:
                assert launches.stop(launch)
                kill(processes[whom])
            else:
                with waiter(project) as got_device:
                    time.sleep(0.6)
                    kill(processes[whom])
                    assert got_device.wait(5)
            wait_until(lambda gone=processes[KEEPER:]: is_gone(project, gone), GONE_SECONDS)
            assert make(project) == (unbroken.video, 0)
    with case("leaving while a run looks for a launch"):
        processes = idle_launch()
        (launch,) = launches.running()
        with step(project) as second:
            # The run waits behind a ticket that does not make the launch leave.
            with leases.queued(project / "leases", ["cpu-0"], "a test", leases.Wish(launch.key, 1)):
                queue = project / "leases" / "queue"
                wait_until(lambda: len(list(queue.iterdir())) == 2, unbroken.patience)
                assert launches.stop(launch)
            assert second.wait() == 0, (project / "log").read_text()
        assert video(project) == (unbroken.video, 0)
        wait_until(lambda: nothing_left(processes[KEEPER:]), GONE_SECONDS)


def kill(process: psutil.Process) -> None:
    with suppress(psutil.NoSuchProcess):
        process.kill()


@contextmanager
def waiter(project: Path) -> Iterator[threading.Event]:
    """Somebody who waits for the device, and gives it back at once. Yields an event that is set when they have it."""
    got_it = threading.Event()

    def want() -> None:
        with leases.lease(project / "leases", ["cpu-0"], 1, "a test", lambda message: None):
            got_it.set()

    thread = threading.Thread(target=want, daemon=True)
    thread.start()
    yield got_it
    thread.join(GONE_SECONDS)


def test_suspended_ranks(project, unbroken, monkeypatch):
    with case("an idle rank is suspended"):
        processes = idle_launch()
        processes[RANK].suspend()
        started = time.monotonic()
        assert make(project) == (unbroken.video, 0)
        assert time.monotonic() - started < unbroken.seconds + 2 * GONE_SECONDS
        wait_until(lambda gone=processes[KEEPER:]: nothing_left(gone), GONE_SECONDS)
    with case("the rank of a cancelled run is suspended"):
        processes = idle_launch()
        with step(project) as second:
            wait_until(lambda: segments_finished(project) >= 1, unbroken.patience)
            processes[RANK].suspend()
            second.kill()
        started = time.monotonic()
        with step(project) as third:
            # keeper.CANCEL_SECONDS
            wait_until(lambda: nothing_left(processes[KEEPER:]), 60 + GONE_SECONDS)
            assert third.wait() == 0, (project / "log").read_text()
        print(f"the next run took {time.monotonic() - started:.0f} s")
        made, resumed = video(project)
        assert made == unbroken.video and resumed >= 1


def test_a_suspended_keeper(project, unbroken):
    """The next run waits, and says for whom."""
    processes = idle_launch()
    processes[KEEPER].suspend()
    before = len((project / "log").read_text())
    with step(project) as second:
        wait_until(
            lambda: "Waits for cpu-0: cpu-0 is held by a warm launch" in (project / "log").read_text()[before:],
            unbroken.patience,
        )
        # Resumed, it serves the run that waits, or leaves.
        processes[KEEPER].resume()
        assert second.wait() == 0, (project / "log").read_text()
    assert video(project) == (unbroken.video, 0)
