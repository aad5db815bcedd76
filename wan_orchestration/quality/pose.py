"""How closely a video follows its driving pose: object keypoint similarity (OKS), as in the COCO keypoint challenge.

https://cocodataset.org/#keypoints-eval, with COCO's and COCO-WholeBody's sigmas for the body joints in use here.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from wan_orchestration.preprocess.estimators import vitpose
from wan_orchestration.preprocess.estimators.base import Estimator, Frame
from wan_orchestration.preprocess.estimators.choose import open_light
from wan_orchestration.preprocess.keypoints import confident
from wan_orchestration.preprocess.networks import Networks
from wan_orchestration.preprocess.tracking import numbered

# In the order of `keypoints.Pose.body`. The neck is the middle of the shoulders; the toes are COCO-WholeBody's.
SIGMAS = np.array([
    .026, .079, .079, .072, .062, .079, .072, .062, .107, .087, .089, .107, .087, .089, .025, .025, .035, .035,
    .068, .068,
])  # fmt: skip
AREA_OF_BOX = 0.53
"""Share of a person's box that the person fills. COCO-style tools use it if they know no outline."""


def similarity(wanted: np.ndarray, found: np.ndarray | None) -> float | None:
    """OKS in 0..1 of the found and the wanted body joints, both (20, 3) of x, y in px and confidence.

    Wanted joints that were not found count as 0. None if fewer than two joints are wanted.
    """
    asked = confident(wanted)
    if asked.sum() < 2:
        return None
    if found is None:
        return 0.0
    sides = wanted[asked, :2].max(axis=0) - wanted[asked, :2].min(axis=0)
    area = max(float(sides[0] * sides[1]), 1.0) * AREA_OF_BOX
    squared = ((wanted[:, :2] - found[:, :2]) ** 2).sum(axis=1)
    terms = np.exp(-squared / (2 * area * (2 * SIGMAS) ** 2))
    return float(np.where(confident(found), np.nan_to_num(terms), 0.0)[asked].mean())


def fit(found: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The found joints (20, 3), moved and scaled so that they lie where the wanted ones are, and are as large.

    Then it does not matter in which part of its frame a person stands, or how large.
    """
    both = confident(wanted) & confident(found)
    if both.sum() < 2:
        return found
    ours, theirs = found[both, :2], wanted[both, :2]
    sizes = [np.linalg.norm(points - points.mean(axis=0)) for points in (ours, theirs)]
    scale = sizes[1] / sizes[0] if sizes[0] else 1.0
    moved = (found[:, :2] - ours.mean(axis=0)) * scale + theirs.mean(axis=0)
    return np.concatenate([moved, found[:, 2:]], axis=1)


def followed(
    samples: Mapping[int, np.ndarray],
    wanted: np.ndarray,
    estimator: Estimator,
    several: bool = False,
    fitted: bool = False,
) -> float | None:
    """Mean OKS of the poses in frames (H, W, 3) uint8 RGB, by index, and the driving joints (T, 20, 3).

    A frame's pose is that of the largest person, or, where `several` are meant to be visible, the most similar one.
    `fitted`: the frames show another part of the scene than the driving ones, see `fit`. None if no frame has enough
    driving joints.
    """
    found = []
    for index, pixels in samples.items():
        frame = Frame(index, 0.0, pixels)
        people = numbered(estimator.detect([frame])[0])[: None if several else 1]
        poses = estimator.estimate([frame] * len(people), people) if people else []
        bodies = [fit(pose.body, wanted[index]) if fitted else pose.body for pose in poses]
        alike = [similarity(wanted[index], body) for body in (bodies or [None])]
        found.append(max((one for one in alike if one is not None), default=None))
    known = [one for one in found if one is not None]
    return round(float(np.mean(known)), 4) if known else None


def local_estimator(snapshot: Path, models_root: Path, networks: Networks) -> Estimator:
    """A pose estimator that needs no download and runs on the CPU: the generation uses the GPU.

    Raises:
        BadInput: none is available.
    """
    if vitpose.available(snapshot):
        return vitpose.open_vitpose(snapshot, "published", "cpu", networks)
    return open_light(models_root / "light", models_root, lambda line: None, networks)
