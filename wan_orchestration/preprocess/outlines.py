"""Opens the source of the person's outline that the settings name."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np

from wan_orchestration.errors import BadInput
from wan_orchestration.preprocess.estimators.base import Frame
from wan_orchestration.preprocess.estimators.light_models import light_files, light_models
from wan_orchestration.preprocess.frames import DrivingVideo
from wan_orchestration.preprocess.keypoints import Pose
from wan_orchestration.preprocess.mask_hints import Prompts
from wan_orchestration.preprocess.masks import MaskFile
from wan_orchestration.preprocess.networks import Networks
from wan_orchestration.settings.preprocess import PreprocessSettings

SAM2 = Path("process_checkpoint/sam2/sam2_hiera_large.pt")


class Outline(Protocol):
    """Finds the outline of the followed person."""

    name: str

    def __call__(self, index: int, frame: Frame, picture: np.ndarray, pose: Pose, hints: Prompts | None) -> np.ndarray:
        """(H, W) uint8 of 0 and 1. `picture` (H, W, 3), `pose` and `hints` are on the canvas.

        Call it for frames in order.
        """
        ...


def open_outline(
    settings: PreprocessSettings,
    driving: Path,
    video: DrivingVideo,
    snapshot: Path | None,
    models_root: Path,
    log: Callable[[str], None],
    networks: Networks,
) -> Outline:
    """Opens the source that `masks` names. BadInput: it is missing, or does not fit the driving video."""
    kind, file = settings.masks, driving.parent / settings.mask_file
    sam2 = snapshot / SAM2 if snapshot is not None else None
    if kind == "auto":
        kind = "file" if file.is_file() else "sam2" if sam2 is not None and sam2.is_file() else "light"
    if kind == "file":
        return _FromFile(file, video)
    if kind == "light":
        return _Light(settings.light_models, models_root, log, networks)
    if sam2 is None or not sam2.is_file():
        raise BadInput(
            f"{sam2 or SAM2} is missing: download it with the snapshot from ModelScope, "
            f"Wan-AI/Wan2.2-Animate-14B, {SAM2}, or use masks: light"
        )
    return _Sam2(sam2, settings.device, len(video), networks)


class _FromFile:
    name = "file"

    def __init__(self, path: Path, video: DrivingVideo) -> None:
        self._masks = MaskFile(path, video.info.frames, video.info.duration)

    def __call__(self, index: int, frame: Frame, picture: np.ndarray, pose: Pose, hints: Prompts | None) -> np.ndarray:
        mask = self._masks(frame.source, frame.time, (picture.shape[1], picture.shape[0]))
        return hints.corrected(mask, pose) if hints else mask


class _Light:
    name = "light"

    def __init__(self, folder: Path | None, models_root: Path, log: Callable[[str], None], networks: Networks) -> None:
        # LiteRT and torch are slow to import.
        from wan_orchestration.preprocess.estimators.light import LightOutline  # noqa: PLC0415

        def load() -> LightOutline:
            return LightOutline(light_models(folder, models_root, log))

        self._outline = networks.open("light outline", "cpu", light_files(folder, models_root), load)

    def __call__(self, index: int, frame: Frame, picture: np.ndarray, pose: Pose, hints: Prompts | None) -> np.ndarray:
        mask = self._outline(picture, pose)
        return hints.corrected(mask, pose) if hints else mask


class _Sam2:
    name = "sam2"

    def __init__(self, path: Path, device: str, frames: int, networks: Networks) -> None:
        from wan_orchestration.preprocess.sam2 import Sam2, pick_device, prompt_interval  # noqa: PLC0415
        from wan_orchestration.preprocess.sam2_weights import load_sam2  # noqa: PLC0415

        place = pick_device(device)
        model = networks.open("sam2", place, [path], lambda: load_sam2(path, place))
        self._sam2 = Sam2(model, place, prompt_interval(frames))

    def __call__(self, index: int, frame: Frame, picture: np.ndarray, pose: Pose, hints: Prompts | None) -> np.ndarray:
        return self._sam2(index, picture, pose, hints)
