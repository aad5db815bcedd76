"""Finds the devices that runs may use, and leases them."""

import csv
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
from pydantic import Field

from wan_orchestration.errors import BadInput
from wan_orchestration.protocol import leases


@dataclass(frozen=True)
class Devices:
    """The devices that a run may use."""

    names: list[str]
    cuda: bool
    lease_folder: Path
    threads: int
    """CPU threads for a process on one of them."""

    def variables(self, lease: leases.Lease) -> dict[str, str]:
        """Environment variables for processes: the leased devices that they see, and the lock files that they hold."""
        return {
            "CUDA_VISIBLE_DEVICES": ",".join(lease.devices) if self.cuda else "",
            "WAN_LEASES": os.pathsep.join(str(file) for file in lease.files),
        }


class Gpus(dg.ConfigurableResource):
    """The GPUs of this machine, each leased to one run at a time. Without GPUs, CPU slots are leased instead."""

    devices: str = Field(
        default="all",
        description='Devices that runs may use: "all" (all in CUDA_VISIBLE_DEVICES if that is set), numbers or UUIDs '
        'as `nvidia-smi -L` lists them, such as "0,2", or "cpu".',
    )
    cpu_slots: int = Field(
        default=1, ge=1, description="On the CPU: runs that work at the same time; they share its cores evenly."
    )
    lease_folder: str | None = Field(
        default=None,
        description="Folder of the lock files; everything that uses these devices needs the same folder. Default: "
        "a folder in the machine's folder for temporary files.",
    )

    def find(self, count: int) -> Devices:
        """The devices to choose from. BadInput: there are fewer than `count`."""
        cuda = self._cuda_devices()
        names = cuda or [f"cpu-{slot}" for slot in range(self.cpu_slots)]
        if count > len(names):
            raise BadInput(
                f"{count} processes need {count} devices, but there are {len(names)}: {', '.join(names)}; "
                f"lower WAN_TORCHRUN_PROCESSES, or raise {'WAN_GPUS_DEVICES' if cuda else 'WAN_GPUS_CPU_SLOTS'}"
            )
        threads = max(1, len(os.sched_getaffinity(0)) // len(names))
        return Devices(names, bool(cuda), self._folder(), threads)

    def _folder(self) -> Path:
        return Path(self.lease_folder or Path(tempfile.gettempdir()) / "wan-leases").expanduser().absolute()

    def _cuda_devices(self) -> list[str]:
        """UUIDs of the GPUs that are present and allowed; an empty list means that runs use the CPU."""
        if self.devices == "cpu":
            return []
        present = _present_gpus()
        if not present:
            return []
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        allowed = list(present.values()) if visible is None else _visible_devices(visible, present)
        if self.devices == "all":
            return allowed
        chosen = _chosen_devices(self.devices, present)
        return chosen if visible is None else [device for device in chosen if device in allowed]


def _present_gpus() -> dict[str, str]:
    """UUIDs of this machine's GPUs by number, as nvidia-smi lists them; empty if it lists none."""
    if not shutil.which("nvidia-smi"):
        return {}
    command = ["nvidia-smi", "--query-gpu=index,uuid", "--format=csv,noheader"]
    listed = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    if listed.returncode:
        return {}
    return dict(csv.reader(listed.stdout.splitlines(), skipinitialspace=True))


def _visible_devices(text: str, present: dict[str, str]) -> list[str]:
    """The devices in CUDA_VISIBLE_DEVICES. As in CUDA, an unknown name such as -1 ends the list."""
    found = []
    for name in text.split(","):
        device = _find_device(name.strip(), present)
        if device is None:
            break
        found.append(device)
    return found


def _chosen_devices(text: str, present: dict[str, str]) -> list[str]:
    """The devices in WAN_GPUS_DEVICES. BadInput: one of them is unknown."""
    found = []
    for name in (part.strip() for part in text.split(",") if part.strip()):
        device = _find_device(name, present)
        if device is None:
            known = ", ".join(f"{index} ({uuid})" for index, uuid in present.items()) or "none"
            raise BadInput(f"WAN_GPUS_DEVICES: found {name!r}, expected GPUs of this machine; there are: {known}")
        found.append(device)
    return found


def _find_device(name: str, present: dict[str, str]) -> str | None:
    """UUID of the GPU with this number, UUID or unique beginning of a UUID; the name of a MIG instance as it is."""
    if name.startswith("MIG-"):
        return name
    matches = [uuid for uuid in present.values() if name.startswith("GPU-") and uuid.startswith(name)]
    return present.get(name) or (matches[0] if len(matches) == 1 else None)
