"""Process trees that end: politely within a grace period, then by force."""

import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import psutil


@contextmanager
def started(
    command: Sequence[str], environment: dict[str, str], grace: float, descriptors: Sequence[int] = ()
) -> Iterator[subprocess.Popen]:
    """A process in a session of its own. On leaving nothing is left of it, nor of its descendants.

    `descriptors` stay open in it, under their own numbers.
    """
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True, pass_fds=tuple(descriptors)
    )
    try:
        yield process
    finally:
        stop(process, grace)


def stop(process: subprocess.Popen, grace: float) -> None:
    """End a session leader and all its descendants: SIGTERM to its group, after `grace` seconds SIGKILL to each."""
    tree = descendants(process.pid)
    try:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(grace)
    finally:
        # Also where a second interrupt cuts the grace period short. Some may have been started since.
        for member in tree.union(*(descendants(member.pid) for member in tree)):
            with suppress(psutil.NoSuchProcess):
                member.kill()
        process.wait()


def descendants(pid: int) -> set[psutil.Process]:
    """A process and all that it started, directly or not."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        return {process, *process.children(recursive=True)}
    return set()
