"""Starts process trees and ends them: SIGTERM first, SIGKILL after a grace period."""

import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil


@contextmanager
def managed_process(command: Sequence[str], environment: dict[str, str], grace: float) -> Iterator[subprocess.Popen]:
    """A process in a session of its own. Ends it and all its descendants on exit."""
    process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        yield process
    finally:
        stop(process, grace)


def stop(process: subprocess.Popen, grace: float) -> None:
    """End a session leader and all its descendants: SIGTERM to its group, SIGKILL to each after `grace` seconds."""
    tree = descendants(process.pid)
    try:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(grace)
    finally:
        # Runs also if a second interrupt cuts the grace period short. Descendants may have started in the meantime.
        for member in tree.union(*(descendants(member.pid) for member in tree)):
            with suppress(psutil.NoSuchProcess):
                member.kill()
        process.wait()


def descendants(pid: int) -> set[psutil.Process]:
    """A process and all that it started, directly or through others; empty if it has ended."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        return {process, *process.children(recursive=True)}
    return set()


def is_running(pid: int, timestamp: float) -> bool:
    """Whether the process that had this id at that Unix time still runs."""
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and process.create_time() <= timestamp + 1
    except psutil.NoSuchProcess:
        return False


def dagster_service() -> tuple[int, float] | None:
    """Process id and start time of the `dagster dev`, daemon or webserver that this process comes from; None for a
    process that a shell started."""
    services = [parent for parent in psutil.Process().parents() if _is_dagster_service(parent)]
    return (services[-1].pid, services[-1].create_time()) if services else None


def _is_dagster_service(process: psutil.Process) -> bool:
    """Whether its command is `dagster ...` or `dagster-daemon ...`, as a program or as `python -m`."""
    try:
        words = process.cmdline()[:3]
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False
    programs = [Path(word).name for word in words[:2]] + (words[2:] if words[1:2] == ["-m"] else [])
    return any(program.startswith("dagster") for program in programs)
