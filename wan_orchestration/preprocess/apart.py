"""Keeps several people apart in masks: no character's mask may cover another person.

A mask is grown, often to the person's whole bounding box, so it would cut away parts of somebody who stands nearby.
The outlines of all people are therefore found first, and written to files. Each mask then leaves the others out.
"""

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np

from wan_orchestration.preprocess.clip_writer import ClipWriter
from wan_orchestration.preprocess.estimators.base import Frame
from wan_orchestration.preprocess.frames import DrivingVideo
from wan_orchestration.preprocess.geometry import letterbox
from wan_orchestration.preprocess.keypoints import Pose
from wan_orchestration.preprocess.outlines import Outline
from wan_orchestration.video.reader import FrameReader

PoseAt = Callable[[int], Pose]
"""The pose of a person on the canvas, by frame number."""


def write_outline(
    path: Path, video: DrivingVideo, outline: Outline, pose_at: PoseAt, progress: Callable[[int], None]
) -> None:
    """Writes a lossless grey video of a person's outline on the canvas: 255 where the person is."""
    with ClipWriter(path, Fraction(video.fps), "gray") as clip:
        for index, frame in enumerate(video):
            pose = pose_at(index)
            clip.write(outline(index, frame, letterbox(frame.pixels, pose.size), pose) * 255)
            progress(index + 1)


class OutlineBesideOthers:
    """A person's outline, and where other people are, from the files of `write_outline`."""

    def __init__(self, name: str, own: Path, others: Sequence[Path]) -> None:
        self.name = name
        self._own, self._others = FrameReader(own), [FrameReader(path) for path in others]

    def __call__(self, index: int, frame: Frame, picture: np.ndarray, pose: Pose) -> np.ndarray:
        return _read(self._own, index)

    def others(self, index: int) -> np.ndarray:
        """(H, W) uint8 of 0 and 1: where others are, and this person is not."""
        found = np.zeros_like(_read(self._own, index))
        for reader in self._others:
            found |= _read(reader, index)
        return found & (1 - _read(self._own, index))

    def close(self) -> None:
        for reader in (self._own, *self._others):
            reader.close()


def _read(reader: FrameReader, index: int) -> np.ndarray:
    return (reader.read([index])[0, ..., 0] > 127).astype(np.uint8)
