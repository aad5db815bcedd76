"""A hash of everything that decides the frames of a video. Segments are resumed only if it is unchanged."""

import hashlib
import json
from importlib.metadata import version
from importlib.util import find_spec

import torch

from wan_orchestration.engine.device import wants_tf32
from wan_orchestration.engine.lora import Lora
from wan_orchestration.engine.memory.placement import WAYS, Name, has_seams
from wan_orchestration.files import sha256
from wan_orchestration.protocol.messages import Task
from wan_orchestration.weights.snapshot import Snapshot


def fingerprints(
    task: Task,
    snapshot: Snapshot,
    loras: tuple[Lora, ...],
    device: torch.device,
    dtype: torch.dtype,
    ranks: int,
    before: str | None = None,
    lossless: bool = False,
) -> dict[bool, str]:
    """The task's fingerprints by whether the video has seams between bands, for the placements that it allows.

    `before` is the fingerprint of the video that is its background, `lossless` whether its segments are written so.
    """
    settings, clips, packages = task.settings, task.clips, ["av", "diffusers", "torch", "transformers"]
    packages += ["torchao"] if settings.quantization != "off" and find_spec("torchao") else []
    names: list[Name] = list(WAYS) if settings.placement == "auto" else [settings.placement]
    files = [clips.reference, *(lora.file for lora in loras)]
    files += [lora.config for lora in loras if lora.config]
    files += [info.path for info in clips.videos.values()]
    facts = task.decisive() | {
        "dtype": str(dtype),
        "tf32": wants_tf32(settings, device, dtype),
        "versions": [version(package) for package in packages],
        "exact": task.save_frames is not None,
        "files": [sha256(file) for file in files],
        "snapshot": snapshot.fingerprint,
    }
    facts |= ({"before": before} if before else {}) | ({"lossless": True} if lossless else {})
    return {
        seams: hashlib.sha256(json.dumps(facts | {"tiled": seams}, sort_keys=True).encode()).hexdigest()
        for seams in sorted({has_seams(name, clips.height, ranks) for name in names})
    }
