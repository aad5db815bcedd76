"""Leases devices of this machine to one job at a time, by file locks. The kernel releases them however a process ends.

FOLDER/<device>      locked by the job that has the device, as a lock shared among its processes; names the job
FOLDER/queue/<time>  a ticket for each job that waits, locked by it; the oldest comes first
FOLDER/door          the mutex for the two above

Everything that uses a device must use the same folder.
"""

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Lease:
    """Devices that belong to this job until the last of its processes that hold them ends."""

    devices: list[str]
    files: list[Path]
    """Lock files for `hold`, in the same order."""
    descriptors: list[int]
    """The open locks, for processes that inherit them."""


@contextmanager
def lease(
    folder: Path, devices: Sequence[str], count: int, holder: str, on_wait: Callable[[str], None]
) -> Iterator[Lease]:
    """Wait until `count` of the devices are free and no older ticket wants one of them, then lease them.

    Args:
        folder: folder of the locks, created if missing.
        devices: names of the devices to choose from.
        holder: a name for this job, shown to others that wait.
        on_wait: called with a message whenever the reason for waiting changes.
    """
    (folder / "queue").mkdir(parents=True, exist_ok=True)
    with _ticket(folder, devices, holder) as ticket:
        descriptors = _wait(folder, ticket, devices, count, holder, on_wait)
        try:
            files = [_file(folder, device) for device in descriptors]
            yield Lease(list(descriptors), files, list(descriptors.values()))
        finally:
            for descriptor in descriptors.values():
                os.close(descriptor)


def hold(files: Sequence[Path]) -> None:
    """Make this process a further holder of a lease, until the process ends.

    Raises:
        BlockingIOError: the lease has ended, and another job is taking the device.
    """
    for file in files:
        fcntl.flock(os.open(file, os.O_RDWR), fcntl.LOCK_SH | fcntl.LOCK_NB)


@contextmanager
def _ticket(folder: Path, devices: Sequence[str], holder: str) -> Iterator[Path]:
    path = folder / "queue" / f"{time.time_ns():020d}-{os.getpid()}"
    # Others remove tickets that are not locked. With the mutex, nobody sees this one before it is locked.
    with _locked(folder / "door"):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.write(descriptor, json.dumps({"devices": list(devices), "holder": holder}).encode())
    try:
        yield path
    finally:
        with _locked(folder / "door"):
            path.unlink(missing_ok=True)
        os.close(descriptor)


def _wait(
    folder: Path, ticket: Path, devices: Sequence[str], count: int, holder: str, on_wait: Callable[[str], None]
) -> dict[str, int]:
    """Wait for the devices and lock them. Returns open descriptors by device, which the caller closes."""
    reported = ""
    while True:
        with _locked(folder / "door"):
            reason = _ahead(folder, ticket, devices)
            if reason is None and (descriptors := _lock_free(folder, devices, count, holder)):
                ticket.unlink()
                return descriptors
            reason = reason or _holders(folder, devices)
        if reason != reported:
            on_wait(f"Waits for {_choice(count, devices)}: {reason}")
            reported = reason
        time.sleep(POLL_SECONDS)


def _ahead(folder: Path, ticket: Path, devices: Sequence[str]) -> str | None:
    """Says whose older ticket for one of the same devices comes first; None if there is none.

    Removes tickets of dead processes.
    """
    for other in sorted((folder / "queue").iterdir()):
        if other.name >= ticket.name:
            return None
        descriptor = _try_lock(other)
        if descriptor is not None:
            other.unlink()
            os.close(descriptor)
            continue
        content = json.loads(other.read_text())
        if not set(devices).isdisjoint(content["devices"]):
            return f"{content['holder']} comes first"
    return None


def _lock_free(folder: Path, devices: Sequence[str], count: int, holder: str) -> dict[str, int]:
    """Lock `count` free devices for this holder. Returns open descriptors by device; empty if too few are free."""
    with ExitStack() as stack:
        descriptors: dict[str, int] = {}
        for device in devices:
            descriptor = _try_lock(_file(folder, device))
            if descriptor is not None:
                stack.callback(os.close, descriptor)
                descriptors[device] = descriptor
            if len(descriptors) == count:
                break
        else:
            return {}
        for descriptor in descriptors.values():
            # A shared lock, so that the job's other processes can hold it too. The mutex keeps other jobs away while
            # the kind of lock changes.
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{holder}, since {time.strftime('%Y-%m-%d %H:%M:%S')}".encode(), 0)
        stack.pop_all()  # keeps the descriptors open, and with them the locks
        return descriptors


def _holders(folder: Path, devices: Sequence[str]) -> str:
    holders = {device: _file(folder, device).read_text() or "another process" for device in devices}
    return "; ".join(f"{device} is held by {holder}" for device, holder in holders.items())


def _file(folder: Path, device: str) -> Path:
    """The lock file of a device. The name of a MIG instance may hold slashes: MIG-GPU-<uuid>/<instance>/<instance>."""
    return folder / device.replace("/", "_")


def _choice(count: int, devices: Sequence[str]) -> str:
    return devices[0] if len(devices) == 1 else f"{count} of {', '.join(devices)}"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Waits for an exclusive lock of a file, and holds it during the block."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _try_lock(path: Path) -> int | None:
    """The descriptor of a file, locked exclusively; None if another process has locked it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor
