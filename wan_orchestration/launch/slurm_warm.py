"""Slurm jobs that stay for the next request, with their models loaded.

WORK_FOLDER/wan-warm-<key>-<random>/     the Slurm job has the same name
    job.sh           the batch script
    slurm.log        the output of the processes
    orders.jsonl     what it is asked for, see protocol/orders.py; `log_bytes` is where the output of an order begins
The messages of each request are in a folder of the request's own (launch/slurm_folder.py).
"""

import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from wan_orchestration.files import replacing
from wan_orchestration.launch import slurm_queue
from wan_orchestration.launch.slurm_folder import LaunchFolder, SlurmFolder, discard
from wan_orchestration.launch.slurm_queue import SlurmJob
from wan_orchestration.protocol.orders import OrderFile

LEAST_SECONDS_LEFT = 600.0
"""Seconds until its time limit that a Slurm job must have to be given more work."""
FORGOTTEN_SECONDS = 86400.0
"""How long after its last order the folder of a Slurm job that ended at work is kept. Its log explains why."""


class WarmLaunch(SlurmFolder):
    """The folder of such a Slurm job."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.orders = OrderFile(path / "orders.jsonl")

    @property
    def key(self) -> str:
        """Equal for launches that would be started in the same way."""
        return self.name.split("-")[2]

    @classmethod
    def new(cls, root: Path, key: str) -> Self:
        """A folder that does not exist yet."""
        return cls(root / f"wan-warm-{key}-{secrets.token_hex(4)}")

    def write(self, script: str, order: dict[str, Any]) -> None:
        """Create the folder, with the first order."""
        with replacing(self.path) as part:
            # Who can write to the folder can give orders.
            part.mkdir(mode=0o700)
            (part / self.script.name).write_text(script)
            (part / self.log.name).touch()
            (part / self.orders.path.name).touch()
            OrderFile(part / self.orders.path.name).give(**order)
        self.orders.read()

    def is_done(self, number: int) -> bool:
        """Whether an order is done."""
        with suppress(FileNotFoundError):
            self.orders.read()
        return self.orders.is_done or self.orders.order["number"] != number

    def is_old(self) -> bool:
        """Whether nothing has been said for long. It may still wait for its nodes, or work."""
        with suppress(FileNotFoundError):
            return time.time() - self.orders.path.stat().st_mtime > FORGOTTEN_SECONDS
        return False


def order(folder: LaunchFolder, variables: Mapping[str, str]) -> dict[str, Any]:
    """An order for a request. `variables` are those of the Pipes session."""
    return {
        "folder": folder.name,
        "log_bytes": 0,
        "variables": dict(variables),
        "request": folder.request.model_dump(mode="json"),
    }


def launches(root: Path) -> list[WarmLaunch]:
    """All launches that have not ended by themselves. Removes the folders of those that have."""
    found = []
    for file in sorted(root.glob("wan-warm-*/orders.jsonl")):
        launch = WarmLaunch(file.parent)
        with suppress(OSError):  # another step has just removed it, or it is another user's
            launch.orders.read()
            if launch.orders.is_done and launch.orders.has_ended:
                discard(launch.path)
            else:
                found.append(launch)
    return found


def working_on(root: Path, folder: str) -> list[WarmLaunch]:
    """Launches that are to work on a request and are not done. `folder` is the name of its folder.

    There can be others than the one that works: those that died, and one that is being cancelled.
    """
    return [one for one in launches(root) if not one.orders.is_done and one.orders.order["folder"] == folder]


def idle(root: Path) -> Iterator[tuple[WarmLaunch, SlurmJob]]:
    """Idle launches and their Slurm jobs. Removes the folders of launches that have died.

    Raises SlurmRejected, SlurmUnreachable.
    """
    for launch in launches(root):
        if launch.orders.is_idle or launch.is_old():
            job = slurm_queue.find(launch.name)
            if job is None:
                discard(launch.path)
            elif launch.orders.is_idle and job.state == "RUNNING":
                yield launch, job


def take_over(root: Path, key: str, order: dict[str, Any]) -> tuple[WarmLaunch, SlurmJob] | None:
    """Give an order to an idle launch with this key, best to one with the same snapshot. None: there is none."""
    suitable = [
        (launch, job) for launch, job in idle(root) if launch.key == key and job.seconds_left >= LEAST_SECONDS_LEFT
    ]
    suitable.sort(key=lambda pair: pair[0].orders.order["request"]["snapshot"] != order["request"]["snapshot"])
    for launch, job in suitable:
        with suppress(FileNotFoundError):  # another step has just removed it
            request = order["request"] | {"warm": True}
            if launch.orders.give(**order | {"request": request, "log_bytes": launch.log.stat().st_size}):
                return launch, job
    return None
