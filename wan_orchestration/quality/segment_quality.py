"""Measures a segment as soon as it is decoded, and scores it, so that a bad one can be made again."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from statistics import median

import numpy as np

from wan_orchestration.errors import BadInput
from wan_orchestration.jobs.clips import JOINTS, Clips
from wan_orchestration.preprocess.estimators.base import Estimator, Frame
from wan_orchestration.protocol.messages import SegmentMeasures, Take
from wan_orchestration.quality.driving import DrivingReader, reference_of
from wan_orchestration.quality.frame_measures import LEAST_CHANGE, FrameMeasures, distance
from wan_orchestration.quality.pose import followed
from wan_orchestration.quality.video_quality import VideoSample, evenly_spaced
from wan_orchestration.settings.checks import CheckSettings

POSE_FRAMES, SLOW_POSE_FRAMES = 4, 2
"""Number of frames in which the light estimator, or a larger one, looks for the pose."""
LIKENESS_FRAMES = 2
"""Number of frames that are compared with the reference picture."""
WORST = 1000.0
"""How far a segment that is not finite misses its threshold."""
LEAST_THRESHOLD = 0.1
"""Misses are relative to the threshold, or to this if that is smaller."""

OpenLikeness = Callable[[np.ndarray], Callable[[list[np.ndarray]], float]]
"""Receives the reference picture; returns a function that compares pictures with it."""


class SegmentMeter:
    """Measures the segments of one task.

    Args:
        clips: of the task.
        open_estimator: opens an estimator for the pose; raises BadInput if none is available.
        open_likeness: opens the measure of identity.
        several: whether the video shows other people too.
    """

    def __init__(
        self,
        clips: Clips,
        open_estimator: Callable[[], Estimator],
        open_likeness: OpenLikeness | None,
        several: bool = False,
    ) -> None:
        self.clips, self.several = clips, several
        self._open_estimator, self._open_likeness = open_estimator, open_likeness
        self._reference = reference_of(clips)
        self._likeness: Callable[[list[np.ndarray]], float] | None = None
        self._joints: np.ndarray | None = None
        self._no_pose: str | None = None
        """Why the pose cannot be measured, once that is known."""

    def measure(
        self,
        frames: np.ndarray,
        start: int,
        finite: bool,
        before: np.ndarray | None,
        earlier: Sequence[SegmentMeasures],
    ) -> SegmentMeasures:
        """Measure a take of a segment.

        Args:
            frames: (n, H, W, 3) uint8 RGB, the segment's part of the video.
            start: index of its first frame in the video.
            finite: whether every value of the decoded frames was finite.
            before: (H, W, 3) uint8 RGB, the frame before; None for the first segment.
            earlier: measures of the segments before, in order.
        """
        estimator = self._estimator()
        count = 0 if estimator is None else POSE_FRAMES if estimator.name == "light" else SLOW_POSE_FRAMES
        posed, compared = evenly_spaced(len(frames), count), evenly_spaced(len(frames), LIKENESS_FRAMES)
        with ThreadPoolExecutor(1) as thread:
            # The networks that find the pose work beside the rest: together they take as long as the slower one.
            samples, joints = {start + index: frames[index] for index in sorted(posed)}, self._joints
            posing: Future[float | None] | None = None
            if estimator and joints is not None:
                fitted = self.clips.skeleton is None
                posing = thread.submit(followed, samples, joints, estimator, self.several, fitted)
            found, subjects = self._look_at_frames(frames, start, before, compared)
            measures = _of_frames(found, finite, before is not None, earlier)
            if self._open_likeness:
                with _explained(measures, "identity"):
                    self._likeness = self._likeness or self._open_likeness(self._reference)
                    measures.identity = round(self._likeness(subjects), 4)
            if posing:
                with _explained(measures, "pose_similarity"):
                    measures.pose_similarity = posing.result()
            elif self._no_pose:
                measures.not_measured["pose_similarity"] = self._no_pose
        return measures

    def _look_at_frames(
        self, frames: np.ndarray, start: int, before: np.ndarray | None, compared: set[int]
    ) -> tuple[FrameMeasures, list[np.ndarray]]:
        """The measures of all frames, and the person in those that are compared with the reference picture."""
        found = FrameMeasures([len(frames)] if before is None else [1, len(frames)])
        subjects = []
        with DrivingReader(self.clips) as reader:
            if before is not None:
                found.add(before, reader.skeleton(start - 1))
            for index, frame in enumerate(frames):
                pose = reader.skeleton(start + index)
                found.add(frame, pose)
                if index in compared:
                    subjects.append(VideoSample(index, frame, pose if self.clips.skeleton else None).subject())
        return found, subjects

    def _estimator(self) -> Estimator | None:
        """An estimator that has seen no frame; None if the pose cannot be measured."""
        if self._no_pose:
            return None
        try:
            if self._joints is None:
                self._joints = self._find_joints()
            return self._open_estimator()
        except BadInput as error:
            self._no_pose = str(error)
            return None

    def _find_joints(self) -> np.ndarray:
        """The driving joints, (T, 20, 3). BadInput: there are none, or the estimator does not see the character."""
        joints = self.clips.folder / JOINTS
        if not joints.is_file():
            raise BadInput(f"the clips come without {JOINTS}, the file of their joints")
        estimator = self._open_estimator()
        if not estimator.detect([Frame(0, 0.0, self._reference)])[0]:
            raise BadInput(f"{estimator.name} finds no person in the reference picture")
        return np.load(joints)["body"]


@contextmanager
def _explained(measures: SegmentMeasures, name: str) -> Iterator[None]:
    """An error of a network leaves its measure out, for instance because memory ran out. The others are kept."""
    try:
        yield
    except Exception as error:
        measures.not_measured[name] = f"{type(error).__name__}: {error}"


def misses(measures: SegmentMeasures, limits: CheckSettings, fps: float) -> dict[str, float]:
    """By measure, how far it misses its threshold, relative to the threshold. Each blank frame counts as 1."""
    frozen = None if measures.frozen_frames is None else measures.frozen_frames / fps
    most = {"frozen": (frozen, limits.frozen_seconds), "seam": (measures.seam, limits.seam)}
    most["colour_drift"] = measures.colour_drift, limits.colour_drift
    least = {"pose": (measures.pose_similarity, limits.pose), "identity": (measures.identity, limits.identity)}
    found = {} if measures.finite else {"finite": WORST}
    if measures.blank_frames:
        found["blank"] = float(measures.blank_frames)
    for name, (value, limit) in most.items():
        if value is not None and value > limit:
            found[name] = (value - limit) / max(limit, LEAST_THRESHOLD)
    for name, (value, limit) in least.items():
        if value is not None and value < limit:
            found[name] = (limit - value) / max(abs(limit), LEAST_THRESHOLD)
    return {name: round(share, 4) for name, share in found.items()}


def best(takes: Sequence[Take]) -> Take:
    """The take with the lowest score; of equal ones the earliest."""
    return min(takes, key=lambda take: (take.score, take.take))


def _of_frames(
    found: FrameMeasures, finite: bool, follows: bool, earlier: Sequence[SegmentMeasures]
) -> SegmentMeasures:
    """What the frames alone tell. `follows`: `found` begins with the last frame of the segment before."""
    own, inside = found.segments[-1], slice(2 if follows else 1, None)
    measures = SegmentMeasures(
        finite=finite,
        blank_frames=own.blank,
        frozen_frames=found.frozen,
        colours=own.colours,
        change=_high(found.changes[inside]),
        pose_change=_high(found.pose_changes[inside]),
    )
    if not follows:
        measures.colour_drift = 0.0
        return measures
    if earlier and earlier[0].colours:
        measures.colour_drift = distance(own.colours, earlier[0].colours)
    changes = [one.change for one in earlier if one.change is not None]
    pose_changes = [one.pose_change for one in earlier if one.pose_change is not None]
    if changes and pose_changes:
        # The new segment's own changes do not count: noise in all of its frames would hide the jump. If its pose moves
        # more than earlier ones, it may change more.
        faster = max((measures.pose_change or 0.0) / max(median(pose_changes), LEAST_CHANGE), 1.0)
        measures.seam = round(found.changes[1] / max(median(changes) * faster, LEAST_CHANGE), 3)
    return measures


def _high(changes: Sequence[float]) -> float | None:
    return round(float(np.percentile(changes, 95)), 4) if len(changes) else None
