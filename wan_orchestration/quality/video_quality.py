"""Measures a finished video against the clips that drove it, in one pass."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wan_orchestration.errors import BadInput
from wan_orchestration.jobs.clips import JOINTS, Clips
from wan_orchestration.preprocess.estimators.base import Estimator, Frame
from wan_orchestration.protocol.messages import Quality
from wan_orchestration.quality.clips_quality import drawn_pixels
from wan_orchestration.quality.driving import DrivingReader, reference_of
from wan_orchestration.quality.frame_measures import FrameMeasures
from wan_orchestration.quality.pose import followed
from wan_orchestration.quality.thumbnails import FRAMES, strip, write_preview
from wan_orchestration.video.reader import iter_frames

Likeness = Callable[[list[np.ndarray], np.ndarray], float]
"""Likeness of pictures (h, w, 3) uint8 RGB to a reference picture: the mean cosine of their features."""

SAMPLES = 12
"""Number of frames that the neural networks look at."""
_MARGIN = 0.15
"""The person's box exceeds the skeleton's by this fraction, and by 8 px, on each side."""


@dataclass(frozen=True)
class VideoSample:
    """A frame of the video at its full size."""

    index: int
    frame: np.ndarray
    """(H, W, 3) uint8 RGB."""
    pose: np.ndarray | None
    """The pose clip's frame, of the same size. None: there is no pose clip."""

    def subject(self) -> np.ndarray:
        """The part of the frame around the skeleton; the whole frame if there is no skeleton."""
        if self.pose is None:
            return self.frame
        y, x = drawn_pixels(self.pose)
        if not len(x):
            return self.frame
        height, width = self.frame.shape[:2]
        across, down = (int((side.max() - side.min()) * _MARGIN) + 8 for side in (x, y))
        top, bottom = max(y.min() - down, 0), min(y.max() + down, height)
        left, right = max(x.min() - across, 0), min(x.max() + across, width)
        return self.frame[top:bottom, left:right]


def measure(
    video: Path,
    clips: Clips,
    lengths: Sequence[int],
    preview: Path,
    open_estimator: Callable[[], Estimator],
    likeness: Likeness | None,
) -> Quality:
    """Measure a video, and write its animated preview.

    Args:
        video: the finished video.
        clips: those that the video was made from. With several characters, identity and pose are those of the worst.
        lengths: number of frames of each segment.
        preview: path of the animated WebP.
        open_estimator: opens an estimator for the pose; raises BadInput if none is available.
        likeness: measures the identity; None if no weights are loaded.

    Raises:
        BadInput: the video, the pose clip or the reference picture cannot be decoded.
    """
    people = [clips, *clips.characters]
    references = [reference_of(one) for one in people]
    measures, samples, strips = FrameMeasures(lengths), [[] for _ in people], []
    sampled, shown = evenly_spaced(sum(lengths), SAMPLES), evenly_spaced(sum(lengths), FRAMES)
    with ExitStack() as stack:
        readers = [stack.enter_context(DrivingReader(one)) for one in people]
        for index, frame in enumerate(iter_frames(video)):
            poses = [reader.skeleton(index) for reader in readers]
            measures.add(frame, poses[0])
            if index in sampled:
                for own, pose in zip(samples, poses):
                    own.append(VideoSample(index, frame, pose if clips.skeleton else None))
            if index in shown:
                strips.append(strip([*references, readers[0].frame(index), frame]))
    write_preview(preview, strips, clips.driving.duration)
    seam, seam_frame = measures.seam()
    quality = Quality(
        frozen_frames=measures.frozen,
        colour_drift=measures.colour_drift(),
        seam=seam,
        seam_frame=seam_frame,
    )
    if likeness is None:
        quality.not_measured["identity"] = "the weights were not loaded: an earlier run had finished all segments"
    else:
        quality.identity = min(
            round(likeness([sample.subject() for sample in own], reference), 4)
            for own, reference in zip(samples, references)
        )
    similarities = []
    for one, reference in zip(people, references):
        joints = one.folder / JOINTS
        if not joints.is_file():
            quality.not_measured["pose_similarity"] = f"the clips come without {JOINTS}, the file of their joints"
            return quality
        try:
            wanted, estimator = np.load(joints)["body"], open_estimator()
            if not estimator.detect([Frame(0, 0.0, reference)])[0]:
                # For example a drawn figure. The poses that it finds in the video then mean nothing.
                quality.not_measured["pose_similarity"] = f"{estimator.name} finds no person in the reference picture"
                return quality
            frames = {sample.index: sample.frame for sample in samples[0]}
            fitted = one.skeleton is None
            similarities.append(followed(frames, wanted, estimator, several=len(people) > 1, fitted=fitted))
        except BadInput as error:
            quality.not_measured["pose_similarity"] = str(error)
            return quality
    quality.pose_similarity = min((one for one in similarities if one is not None), default=None)
    return quality


def evenly_spaced(total: int, count: int) -> set[int]:
    """Indices of up to `count` frames, evenly spaced."""
    return set(np.linspace(0, total - 1, min(count, total)).round().astype(int).tolist())
