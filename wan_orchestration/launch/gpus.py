"""The devices that runs may use, and their leases."""

import csv
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
from pydantic import Field

from wan_orchestration.errors import BadInput
from wan_orchestration.protocol import leases

DEVICES_TAG = "wan/devices"


@dataclass(frozen=True)
class Share:
    """What a launch may use."""

    lease: leases.Lease
    cuda: bool
    threads: int
    """CPU threads for all its processes together."""

    def part(self, index: int, parts: int) -> "Share":
        """One of several equal parts."""
        each = slice(index, None, parts)
        lease = leases.Lease(self.lease.devices[each], self.lease.files[each], self.lease.descriptors[each])
        return Share(lease, self.cuda, max(1, self.threads // parts))

    @property
    def variables(self) -> dict[str, str]:
        """For the processes: the devices they see, and the locks they are to hold."""
        return {
            "CUDA_VISIBLE_DEVICES": ",".join(self.lease.devices) if self.cuda else "",
            "WAN_LEASES": os.pathsep.join(str(file) for file in self.lease.files),
        }


class Gpus(dg.ConfigurableResource):
    """The GPUs of this machine, each lent to one run at a time. Where there are none, CPU slots stand in for them."""

    devices: str = Field(
        default="all",
        description='Devices that runs may use: "all" (that CUDA_VISIBLE_DEVICES leaves), numbers or UUIDs as '
        '`nvidia-smi -L` lists them, such as "0,2", or "cpu".',
    )
    cpu_slots: int = Field(
        default=1, ge=1, description="On the CPU: runs at work at once; they share its cores evenly."
    )
    lease_folder: str | None = Field(
        default=None,
        description="Folder of the locks, the same for everything that uses these devices; default: one in the "
        "machine's folder for temporary files.",
    )

    @contextmanager
    def leased(self, context: dg.AssetExecutionContext, count: int, job: str) -> Iterator[Share]:
        """`count` devices, once they are free. BadInput: there are not as many."""
        cuda = self._cuda_devices()
        names = cuda or [f"cpu-{slot}" for slot in range(self.cpu_slots)]
        if count > len(names):
            raise BadInput(
                f"{count} processes want as many devices, but there are {len(names)}: {', '.join(names)}; "
                f"lower WAN_TORCHRUN_PROCESSES, or raise {'WAN_GPUS_DEVICES' if cuda else 'WAN_GPUS_CPU_SLOTS'}"
            )
        holder = f"run {context.run.run_id[:8]} ({job})"
        cores = len(os.sched_getaffinity(0))
        with leases.lease(self._folder(), names, count, holder, context.log.info) as lease:
            context.instance.add_run_tags(context.run.run_id, {DEVICES_TAG: ", ".join(lease.devices)})
            yield Share(lease, bool(cuda), max(1, cores * count // len(names)))

    def _folder(self) -> Path:
        return Path(self.lease_folder or Path(tempfile.gettempdir()) / "wan-leases").expanduser().absolute()

    def _cuda_devices(self) -> list[str]:
        """UUIDs of the devices that are both present and allowed; none where work is to be done on the CPU."""
        if self.devices == "cpu":
            return []
        present = _present()
        if not present:
            return []
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        allowed = list(present.values()) if visible is None else _visible(visible, present)
        if self.devices == "all":
            return allowed
        wanted = _named(self.devices, present)
        return wanted if visible is None else [device for device in wanted if device in allowed]


def _present() -> dict[str, str]:
    """UUIDs of this machine's GPUs by number, as nvidia-smi lists them; none where it does not."""
    if not shutil.which("nvidia-smi"):
        return {}
    command = ["nvidia-smi", "--query-gpu=index,uuid", "--format=csv,noheader"]
    listed = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    if listed.returncode:
        return {}
    return dict(csv.reader(listed.stdout.splitlines(), skipinitialspace=True))


def _visible(text: str, present: dict[str, str]) -> list[str]:
    """Devices of CUDA_VISIBLE_DEVICES. As in CUDA, the first that is unknown, such as -1, hides itself and the rest."""
    found = []
    for name in text.split(","):
        device = _device(name.strip(), present)
        if device is None:
            break
        found.append(device)
    return found


def _named(text: str, present: dict[str, str]) -> list[str]:
    """Devices of WAN_GPUS_DEVICES. BadInput: one of them is unknown."""
    found = []
    for name in (part.strip() for part in text.split(",") if part.strip()):
        device = _device(name, present)
        if device is None:
            there = ", ".join(f"{index} ({uuid})" for index, uuid in present.items()) or "none"
            raise BadInput(f"WAN_GPUS_DEVICES: found {name!r}, expected GPUs of this machine; there are: {there}")
        found.append(device)
    return found


def _device(name: str, present: dict[str, str]) -> str | None:
    """UUID of a device by number, UUID or the beginning of one that no other has. A part of a GPU (MIG) as it is."""
    if name.startswith("MIG-"):
        return name
    matches = [uuid for uuid in present.values() if name.startswith("GPU-") and uuid.startswith(name)]
    return present.get(name) or (matches[0] if len(matches) == 1 else None)
