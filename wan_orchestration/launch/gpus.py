"""The devices that runs may use, as a resource."""

import os
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
from pydantic import Field

from wan_orchestration.errors import BadInput
from wan_orchestration.protocol import leases
from wan_orchestration.protocol.devices import cuda_devices, lease_folder


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
        cuda = cuda_devices(self.devices)
        names = cuda or [f"cpu-{slot}" for slot in range(self.cpu_slots)]
        if count > len(names):
            raise BadInput(
                f"{count} processes need {count} devices, but there are {len(names)}: {', '.join(names)}; "
                f"lower WAN_TORCHRUN_PROCESSES, or raise {'WAN_GPUS_DEVICES' if cuda else 'WAN_GPUS_CPU_SLOTS'}"
            )
        threads = max(1, len(os.sched_getaffinity(0)) // len(names))
        return Devices(names, bool(cuda), lease_folder(self.lease_folder), threads)
