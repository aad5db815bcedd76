"""A job whose driving video shows two drawn people: number 1, the larger one, on the left, number 2 on the right."""

from pathlib import Path

import numpy as np

from mini.figures import FPS
from mini.group import two_figures
from mini.jobs import write_group
from wan_orchestration.preprocess.keypoints import PARTS
from wan_orchestration.video.writer import write_lossless


def write_two_people(folder: Path, frames: int, mode: str) -> Path:
    """A driving video with its keypoints and a mask of both people, a picture with its keypoints, and `job.yaml`."""
    group = two_figures(5, frames, size=(192, 128))
    write_group(folder, group)
    (folder / "character_1.png").rename(folder / "reference.png")
    height = group.size[1] * 2
    standing = group.scenes[0].standing.pose(0, (height, height))
    parts = {part: getattr(standing, part)[None] for part in PARTS}
    np.savez_compressed(folder / "reference_keypoints.npz", size=standing.size, **parts)
    masks = (np.maximum(group.mask(0, t, 2), group.mask(1, t, 2)) * 255 for t in group.frames)
    write_lossless(folder / "mask.mp4", masks, FPS, "gray")
    for name in ("character_2.png", "mask_1.mp4", "mask_2.mp4"):
        (folder / name).unlink()
    (folder / "job.yaml").write_text(f"mode: {mode}\npreprocess: {{resolution_area: 16384}}")
    return folder
