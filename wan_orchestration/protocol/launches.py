"""The launches of this user on this machine: where they are found, what they tell of themselves, how they are stopped.

Each has a folder with the socket of its keeper (`launch/keeper.py`), the output of its processes and their stacks.
"""

import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ValidationError

from wan_orchestration.protocol import lines
from wan_orchestration.protocol.lines import ANSWER_SECONDS, Line

LOG = "log"
"""Output of a launch's processes since it was taken over."""

COLUMNS = ("launch", "devices", "state", "jobs", "snapshot", "memory")
FORGOTTEN_SECONDS = 300.0
"""Age of a folder without a socket that is removed."""


class LaunchInfo(BaseModel):
    """What a launch tells of itself."""

    id: str
    """Name of its folder."""
    pid: int
    """Of its keeper."""
    key: str
    """Equal for launches whose processes would be started in the same way."""
    devices: list[str]
    processes: int
    state: Literal["working", "idle", "leaving"]
    run: str | None
    """The Dagster run that it works for."""
    snapshot: Path | None
    """Folder of the weights of its last request that had any."""
    jobs: int
    """Number of jobs that it has finished."""
    idle_seconds: float
    """0 unless it is idle."""
    keep_warm_seconds: float
    memory_bytes: int | None
    """Host memory of its processes, if that was asked for. Memory that they share is counted once."""

    def row(self) -> dict[str, str | int]:
        """What a table shows, by `COLUMNS`."""
        idle = f"idle for {self.idle_seconds:.0f} of {self.keep_warm_seconds:.0f} s"
        doing = f"works for run {self.run[:8]}" if self.run else "stops a job"
        cells = (
            self.id,
            ", ".join(self.devices),
            {"idle": idle, "working": doing, "leaving": "ends"}[self.state],
            self.jobs,
            str(self.snapshot or ""),
            "" if self.memory_bytes is None else f"{self.memory_bytes / 1e9:.1f} GB",
        )
        return dict(zip(COLUMNS, cells, strict=True))

    def __str__(self) -> str:
        return ", ".join(f"{cell} {name}" if name == "jobs" else str(cell) for name, cell in self.row().items() if cell)


def root() -> Path:
    """The folder of this user's launches, which nobody else can enter. PermissionError: it is not like that."""
    folder = Path(tempfile.gettempdir()) / f"wan-launches-{os.geteuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700, parents=True)
    facts = folder.lstat()
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.geteuid() or facts.st_mode & 0o077:
        raise PermissionError(f"{folder}: expected a folder of mode 0700 that belongs to you; remove it")
    return folder


def running(memory: bool = False) -> list[LaunchInfo]:
    """All launches that answer, by their age. Removes the folders of those that are gone.

    With `memory` their memory is measured, which may take a second.
    """
    return [info for folder in _folders() if (info := ask(folder, memory))]


def ask(folder: Path, memory: bool = False) -> LaunchInfo | None:
    """What a launch tells of itself; None if it does not answer."""
    try:
        with closing(lines.connect(folder)) as line:
            line.send(do="tell", memory=memory)
            return LaunchInfo.model_validate(line.receive(ANSWER_SECONDS))
    except ConnectionRefusedError:
        # Its keeper was killed. The kernel has killed its other processes.
        shutil.rmtree(folder, ignore_errors=True)
    except FileNotFoundError:
        # It is starting, or it never started.
        with suppress(FileNotFoundError):
            if time.time() - folder.stat().st_mtime > FORGOTTEN_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)
    except (OSError, ValidationError):
        # It is leaving, or it hangs.
        pass
    return None


def take_over(info: LaunchInfo, run: str, holder: str) -> Line | None:
    """Take over an idle launch. None: it works for another run, or leaves.

    `run` is the run's id, `holder` its name for others who wait for the devices.
    """
    try:
        line = lines.connect(root() / info.id)
    except OSError:
        return None
    try:
        line.send(do="take", key=info.key, run=run, holder=holder)
        answer = line.receive(ANSWER_SECONDS)
    except OSError:
        answer = None
    if answer and answer["taken"]:
        return line
    line.close()
    return None


def stop(info: LaunchInfo, at_once: bool = False) -> bool:
    """End a launch, after its present jobs unless `at_once`. Returns whether it answers."""
    try:
        with closing(lines.connect(root() / info.id)) as line:
            line.send(do="stop", at_once=at_once)
            return line.receive(ANSWER_SECONDS) is not None
    except OSError:
        return False


def _folders() -> Iterator[Path]:
    try:
        found = list(root().iterdir())
    except OSError:
        return
    yield from sorted(found, key=lambda folder: folder.stat().st_ctime if folder.exists() else 0)
