"""Devices of this machine, lent to one job at a time by file locks, which the kernel takes back whatever ends.

FOLDER/<device>      locked, shared among its processes, by the job that has the device; says who that is
FOLDER/queue/<time>  one for each that waits, locked by it; the first come is served first
FOLDER/door          locked while the two above are looked at and changed

Everything that uses a device has to use the same folder.
"""

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Lease:
    """Devices that are this job's until the last of its processes that holds them ends."""

    devices: list[str]
    files: list[Path]
    """For `hold`, in the same order."""
    descriptors: list[int]
    """Open locks, for processes that inherit them."""


@contextmanager
def lease(
    folder: Path, devices: Sequence[str], count: int, holder: str, tell: Callable[[str], None]
) -> Iterator[Lease]:
    """Wait until `count` of the devices are free and nobody else waits longer for any of them, and take those.

    Args:
        folder: of the locks; made if need be.
        devices: names of the devices that would do.
        holder: who asks, in words that others are shown.
        tell: hears what is waited for, whenever that changes.
    """
    for part in (folder, folder / "queue"):
        part.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        ticket = stack.enter_context(_ticket(folder, devices, holder))
        told = ""
        while True:
            with _locked(folder / "door"):
                reason = _ahead(folder, ticket, devices)
                files = _free(folder, devices, count, stack) if reason is None else {}
                if len(files) == count:
                    for descriptor in files.values():
                        os.ftruncate(descriptor, 0)
                        os.pwrite(descriptor, f"{holder}, since {time.strftime('%Y-%m-%d %H:%M:%S')}".encode(), 0)
                    ticket.unlink()
                    break
                news = reason or _holders(folder, devices)
            if news != told:
                tell(f"Waits for {_among(count, devices)}: {news}")
                told = news
            time.sleep(POLL_SECONDS)
        yield Lease(list(files), [_file(folder, device) for device in files], list(files.values()))


def hold(files: Sequence[Path]) -> None:
    """Have this process hold a lease for as long as it lives, beside those that hold it already.

    Raises:
        BlockingIOError: the lease has ended, and the device is somebody else's by now.
    """
    for file in files:
        fcntl.flock(os.open(file, os.O_RDWR), fcntl.LOCK_SH | fcntl.LOCK_NB)


@contextmanager
def _ticket(folder: Path, devices: Sequence[str], holder: str) -> Iterator[Path]:
    path = folder / "queue" / f"{time.time_ns():020d}-{os.getpid()}"
    # Under the door's lock, so that nobody finds it before it is locked, and takes it for a dead one's.
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


def _ahead(folder: Path, ticket: Path, devices: Sequence[str]) -> str | None:
    """Who waits longer for one of the same devices; tickets of the dead are removed."""
    for other in sorted((folder / "queue").iterdir()):
        if other.name >= ticket.name:
            return None
        try:
            with _locked(other, wait=False):
                other.unlink()
        except BlockingIOError:
            wanted = json.loads(other.read_text())
            if not set(devices).isdisjoint(wanted["devices"]):
                return f"{wanted['holder']} comes first"
    return None


def _free(folder: Path, devices: Sequence[str], count: int, stack: ExitStack) -> dict[str, int]:
    """Lock `count` devices that nobody holds; all or none. Descriptors by device, closed by the stack."""
    with ExitStack() as taken:
        files: dict[str, int] = {}
        for device in devices:
            with suppress(BlockingIOError):
                files[device] = taken.enter_context(_locked(_file(folder, device), wait=False))
                if len(files) == count:
                    break
        if len(files) < count:
            return {}
        for descriptor in files.values():
            # Shared from here on, so that the job's other processes can hold it too. Nobody gets in between: the door.
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        stack.push(taken.pop_all())
        return files


def _holders(folder: Path, devices: Sequence[str]) -> str:
    return "; ".join(f"{device} is held by {_file(folder, device).read_text() or 'somebody'}" for device in devices)


def _file(folder: Path, device: str) -> Path:
    """A part of a GPU may be named MIG-GPU-<uuid>/<instance>/<instance>."""
    return folder / device.replace("/", "_")


def _among(count: int, devices: Sequence[str]) -> str:
    return devices[0] if len(devices) == 1 else f"{count} of {', '.join(devices)}"


@contextmanager
def _locked(path: Path, wait: bool = True) -> Iterator[int]:
    """The file's descriptor, locked against everybody else. BlockingIOError where that would take waiting."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield descriptor
    finally:
        os.close(descriptor)
