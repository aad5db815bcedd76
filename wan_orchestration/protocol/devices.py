"""Finds the GPUs of this machine that may be used, and the folder in which they are leased."""

import csv
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from wan_orchestration.errors import BadInput


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
