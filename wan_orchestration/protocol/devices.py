"""Finds the GPUs of this machine that may be used, and the folder in which they are leased."""

import csv
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

from wan_orchestration.errors import BadInput

PEAK_TFLOPS = {
    "B200": 2250.0,
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "H20": 148.0,
    "A100": 312.0,
    "A800": 312.0,
    "A40": 150.0,
    "L40S": 362.0,
    "L40": 181.0,
    "L20": 119.0,
    "L4": 121.0,
    "A10G": 70.0,
    "A10": 125.0,
    "RTX PRO 6000": 500.0,
    "RTX 6000 Ada": 364.0,
    "RTX A6000": 155.0,
    "RTX 5090": 210.0,
    "RTX 5080": 113.0,
    "RTX 4090": 165.0,
    "RTX 4080": 98.0,
    "RTX 3090": 71.0,
}
"""Dense bfloat16 TFLOP/s, with sums in float32, from data sheets. A key is a part of the name that nvidia-smi shows."""
REACHED = 0.8
"""Share of it that a large matrix product reaches (790 TFLOP/s on an H100)."""


class Card(NamedTuple):
    """A GPU of this machine."""

    uuid: str
    name: str
    memory: int
    """Bytes."""

    @property
    def tflops(self) -> float | None:
        """Expected TFLOP/s of a large matrix product in bfloat16; None if the card is unknown."""
        found = [known for known in PEAK_TFLOPS if re.search(rf"\b{re.escape(known)}\b", self.name)]
        return REACHED * PEAK_TFLOPS[max(found, key=len)] if found else None


def lease_folder(folder: str | None) -> Path:
    """The folder of the lock files; None: the default, in the machine's folder for temporary files."""
    return Path(folder or Path(tempfile.gettempdir()) / "wan-leases").expanduser().absolute()


def cuda_devices(wanted: str) -> list[str]:
    """UUIDs of the GPUs that are present and allowed; an empty list means that the CPU is used.

    `wanted` has the form of WAN_GPUS_DEVICES. BadInput: it names a GPU that is not there.
    """
    if wanted == "cpu":
        return []
    present = _present_gpus()
    if not present:
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    allowed = list(present.values()) if visible is None else _visible_devices(visible, present)
    if wanted == "all":
        return allowed
    chosen = _chosen_devices(wanted, present)
    return chosen if visible is None else [device for device in chosen if device in allowed]


def cards(wanted: str) -> list[Card]:
    """The GPUs of `cuda_devices`. Without MIG instances, whose speed is not known. BadInput as there."""
    allowed = cuda_devices(wanted)
    return [
        Card(uuid, name, int(mebibytes) * 2**20)
        for uuid, name, mebibytes in _query("uuid,name,memory.total")
        if uuid in allowed and mebibytes.isdigit()  # "[N/A]" where the GPU shares the host's memory
    ]


def _present_gpus() -> dict[str, str]:
    """UUIDs of this machine's GPUs by number, as nvidia-smi lists them; empty if it lists none."""
    return dict(_query("index,uuid"))


def _query(fields: str) -> list[list[str]]:
    """These fields of each GPU, as nvidia-smi lists them; empty if it lists none."""
    if not shutil.which("nvidia-smi"):
        return []
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    listed = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    return [] if listed.returncode else list(csv.reader(listed.stdout.splitlines(), skipinitialspace=True))


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
