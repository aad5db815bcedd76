"""The motion of one person: the keypoints of every frame. Fills gaps and smooths jitter."""

from collections.abc import Sequence

import numpy as np

from wan_orchestration.preprocess.keypoints import PARTS, Pose, absent


class Motion:
    """Poses of the chosen frames in order: (T, points, 3) float32 for each part, 1.6 kB per frame."""

    def __init__(self, size: tuple[int, int], frames: int) -> None:
        """`size` is (width, height) px; nothing is found yet."""
        self.size = size
        self.body, self.left_hand, self.right_hand, self.face = (
            np.tile(absent(count).astype(np.float32), (frames, 1, 1)) for count in PARTS.values()
        )

    @classmethod
    def from_poses(cls, size: tuple[int, int], poses: Sequence[Pose | None]) -> "Motion":
        """The motion of these poses. None: the person was not found in this frame."""
        motion = cls(size, len(poses))
        for index, pose in enumerate(poses):
            if pose is not None:
                motion[index] = pose
        return motion

    def __len__(self) -> int:
        return len(self.body)

    def __getitem__(self, index: int) -> Pose:
        return Pose(self.size, *(getattr(self, part)[index].astype(np.float64) for part in PARTS))

    def __setitem__(self, index: int, pose: Pose) -> None:
        for part in PARTS:
            getattr(self, part)[index] = getattr(pose, part)

    def found(self, part: str) -> np.ndarray:
        """(T,) bool: frames in which any point of the part was found."""
        return (getattr(self, part)[..., 2] > 0).any(axis=1)

    def fill_gaps(self, longest: int) -> None:
        """Fills gaps of up to `longest` frames by linear interpolation, for each part separately, in place."""
        for part in PARTS:
            points = getattr(self, part)
            found = self.found(part)
            for start, end in stretches(~found):
                if start > 0 and end < len(found) and end - start <= longest:
                    weight = (np.arange(1, end - start + 1) / (end - start + 1))[:, None, None]
                    points[start:end] = points[start - 1] * (1 - weight) + points[end] * weight

    def smooth(self, sigma: float) -> None:
        """Smooths coordinates over time with a Gaussian of `sigma` frames, in place. Missing points stay missing.

        Frames are weighted by a point's confidence, so an uncertain point follows the certain ones before and after it.
        """
        reach = int(np.ceil(3 * sigma))
        kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
        for part in PARTS:
            points = getattr(self, part)
            weights = np.where(np.isfinite(points[..., :2]).all(axis=-1), points[..., 2], 0)
            total = np.zeros_like(points[..., :2])
            weight = np.zeros_like(weights)
            values = np.nan_to_num(points[..., :2]) * weights[..., None]
            for shift, factor in zip(range(-reach, reach + 1), kernel):
                to, back = (
                    slice(max(-shift, 0), len(self) - max(shift, 0)),
                    slice(max(shift, 0), len(self) + min(shift, 0)),
                )
                total[to] += factor * values[back]
                weight[to] += factor * weights[back]
            seen = weights > 0
            points[..., :2][seen] = total[seen] / weight[seen][:, None]


def stretches(flags: np.ndarray) -> list[tuple[int, int]]:
    """Stretches of consecutive true flags as (first, one past the last)."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist()))


def describe_frames(frames: Sequence[int] | np.ndarray, most: int = 8) -> str:
    """Frame numbers as ranges for a message: `0-4, 17, 30-41`."""
    flags = np.zeros(max(frames, default=-1) + 1, bool)
    flags[list(frames)] = True
    spans = [f"{start}" if end == start + 1 else f"{start}-{end - 1}" for start, end in stretches(flags)]
    return ", ".join(spans[:most]) + (f" and {len(spans) - most} more stretches" if len(spans) > most else "")
