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
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

POLL_SECONDS = 0.5


class Wish(NamedTuple):
    """A warm launch that the holder of a ticket could take over."""

    key: str
    """See `launches.LaunchInfo.key`."""
    processes: int
    """Number of its ranks; 0 if any number will do."""

    def allows(self, key: str, processes: int) -> bool:
        return self.key == key and self.processes in (0, processes)


class Ticket(NamedTuple):
    """A job that waits for devices."""

    file: Path
    devices: list[str]
    holder: str
    wish: Wish | None = None

    def wants_any(self, devices: Sequence[str]) -> bool:
        return not set(devices).isdisjoint(self.devices)


@dataclass(frozen=True)
class Lease:
    """Devices that belong to this job until the last of its processes that hold them ends."""

    devices: list[str]
    files: list[Path]
    """Lock files for `hold`, in the same order."""
    descriptors: list[int]
    """The open locks, for processes that inherit them."""

    def close(self) -> None:
        """Give up this process's share. The devices are free once no other process of the job holds them."""
        for descriptor in self.descriptors:
            os.close(descriptor)


@contextmanager
def lease(
    folder: Path, devices: Sequence[str], count: int, holder: str, on_wait: Callable[[str], None]
) -> Iterator[Lease]:
    """Wait until `count` of the devices are free and no older ticket wants one of them, then lease them.

    Args:
        folder: folder of the locks, created if missing.
        devices: names of the devices to choose from.
        count: how many to lease.
        holder: a name for this job, shown to others that wait.
        on_wait: called with a message whenever the reason for waiting changes.
    """
    with queued(folder, devices, holder) as place:
        while (found := place.lock(count)) is None:
            place.explain(count, on_wait)
            time.sleep(POLL_SECONDS)
    try:
        yield found
    finally:
        found.close()


@contextmanager
def queued(folder: Path, devices: Sequence[str], holder: str, wish: Wish | None = None) -> Iterator["Place"]:
    """A place in the queue for devices. Arguments as for `lease`; `wish` is a warm launch that would do too."""
    (folder / "queue").mkdir(parents=True, exist_ok=True)
    ticket = folder / "queue" / f"{time.time_ns():020d}-{os.getpid()}"
    content = {"devices": list(devices), "holder": holder} | ({"wish": wish._asdict()} if wish else {})
    # Others remove tickets that are not locked. With the mutex, nobody sees this one before it is locked.
    with _locked(folder / "door"):
        descriptor = os.open(ticket, os.O_RDWR | os.O_CREAT, 0o666)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.write(descriptor, json.dumps(content).encode())
    try:
        yield Place(folder, ticket, devices, holder)
    finally:
        with _locked(folder / "door"):
            ticket.unlink(missing_ok=True)
        os.close(descriptor)


class Place:
    """A place in the queue, see `queued`."""

    def __init__(self, folder: Path, ticket: Path, devices: Sequence[str], holder: str) -> None:
        self.folder, self.ticket, self.devices, self.holder = folder, ticket, devices, holder
        self._explained = ""

    def is_first(self) -> bool:
        """Whether no older ticket wants one of the devices. It stays true once it is."""
        with _locked(self.folder / "door"):
            return self._ahead() is None

    def lock(self, count: int) -> Lease | None:
        """Lease `count` devices; None if fewer are free, or an older ticket wants one of them."""
        with _locked(self.folder / "door"):
            if self._ahead() is not None:
                return None
            descriptors = _lock_free(self.folder, self.devices, count, self.holder)
        files = [_file(self.folder, device) for device in descriptors]
        return Lease(list(descriptors), files, list(descriptors.values())) if descriptors else None

    def explain(self, count: int, on_wait: Callable[[str], None]) -> None:
        """Call `on_wait` with the reason for waiting, if it is not the one of the last call."""
        with _locked(self.folder / "door"):
            reason = self._ahead() or _holders(self.folder, self.devices)
        if reason != self._explained:
            on_wait(f"Waits for {_choice(count, self.devices)}: {reason}")
            self._explained = reason

    def _ahead(self) -> str | None:
        """Says whose older ticket for one of the same devices comes first; None if there is none."""
        older = (other for other in _tickets(self.folder) if other.file.name < self.ticket.name)
        first = next((other for other in older if other.wants_any(self.devices)), None)
        return first and f"{first.holder} comes first"


def waiting(folder: Path, devices: Sequence[str]) -> list[Ticket]:
    """Tickets for any of these devices, the oldest first."""
    if not (folder / "queue").is_dir():
        return []
    with _locked(folder / "door"):
        return [ticket for ticket in _tickets(folder) if ticket.wants_any(devices)]


def hold(files: Sequence[Path]) -> None:
    """Make this process a further holder of a lease, until the process ends.

    Raises:
        BlockingIOError: the lease has ended, and another job is taking the device.
    """
    for file in files:
        fcntl.flock(os.open(file, os.O_RDWR), fcntl.LOCK_SH | fcntl.LOCK_NB)


def name_holder(descriptors: Sequence[int], holder: str) -> None:
    """Write the name of the job that holds these open locks into their files."""
    for descriptor in descriptors:
        with suppress(OSError):  # the disk is full; the lock holds without a name
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{holder}, since {time.strftime('%Y-%m-%d %H:%M:%S')}".encode(), 0)


def _tickets(folder: Path) -> Iterator[Ticket]:
    """All tickets, the oldest first. Removes those of dead processes. The caller holds the mutex."""
    for file in sorted((folder / "queue").iterdir()):
        descriptor = _try_lock(file)
        if descriptor is not None:
            file.unlink()
            os.close(descriptor)
            continue
        content = json.loads(file.read_text())
        wish = content.get("wish")
        yield Ticket(file, content["devices"], content["holder"], Wish(**wish) if wish else None)


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
        name_holder(list(descriptors.values()), holder)
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
