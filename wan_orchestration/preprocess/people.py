"""The first pass over the driving video: one person's keypoints in every chosen frame."""

from collections.abc import Callable
from dataclasses import dataclass, field

import cv2
import numpy as np

from wan_orchestration.errors import BadInput
from wan_orchestration.preprocess.estimators.base import Detection, Estimator, Frame
from wan_orchestration.preprocess.frames import DrivingVideo, ahead, batched
from wan_orchestration.preprocess.motion import Motion, describe_frames
from wan_orchestration.preprocess.tracking import Choice, Tracker, numbered

SAMPLES = 12
SAMPLE_WIDTH = 480
_MOSTLY = 0.5
"""Part of the frames in which the person must be found."""


@dataclass
class Sample:
    """A frame kept small for the contact sheet."""

    index: int
    picture: np.ndarray
    people: list[Detection]
    """In the order of their numbers, boxes in px of the driving video."""
    followed: Detection | None


@dataclass
class Person:
    """What the first pass found out."""

    motion: Motion
    """As found, gaps and all."""
    found: np.ndarray
    """(T,) bool."""
    several: list[int]
    """Frames with more than one person."""
    taken_up_again: list[int]
    samples: list[Sample] = field(default_factory=list)


def follow_person(video: DrivingVideo, estimator: Estimator, choice: Choice, progress: Callable[[int], None]) -> Person:
    """Keypoints of the person chosen. BadInput: nobody is found, or nobody as chosen, or not in most of the frames."""
    tracker = Tracker(choice, float(video.fps), video.size)
    sampled = set(np.linspace(0, len(video) - 1, min(SAMPLES, len(video))).round().astype(int).tolist())
    motion = Motion(video.size, len(video))
    found_in = np.zeros(len(video), bool)
    done = 0
    several: list[int] = []
    samples: list[Sample] = []
    crowd_seen = False
    for batch in batched(ahead(video, 2 * estimator.batch), estimator.batch):
        unique = _without_repeats(batch)
        people = dict(zip((frame.source for frame in unique), estimator.detect(unique)))
        followed = [tracker.follow(done + i, people[frame.source]) for i, frame in enumerate(batch)]
        seen = {frame.source: (frame, person) for frame, person in zip(batch, followed) if person is not None}
        found = dict(zip(seen, estimator.estimate(*zip(*seen.values())))) if seen else {}
        for i, frame in enumerate(batch):
            if followed[i] is not None:
                motion[done + i], found_in[done + i] = found[frame.source], True
            crowd = numbered(people[frame.source])
            if len(crowd) > 1:
                several.append(done + i)
            # The first frame with several people is shown too: it is where they are numbered.
            if done + i in sampled or (len(crowd) > 1 and not crowd_seen):
                crowd_seen = crowd_seen or len(crowd) > 1
                samples.append(_sample(done + i, frame, crowd, followed[i]))
        done += len(batch)
        progress(done)
    tracker.check_choice()
    _check(video, found_in, several)
    return Person(motion, found_in, several, tracker.taken_up_again, samples)


def _without_repeats(batch: list[Frame]) -> list[Frame]:
    return list({frame.source: frame for frame in batch}.values())


def _sample(index: int, frame: Frame, people: list[Detection], followed: Detection | None) -> Sample:
    width, height = frame.size
    small = cv2.resize(
        frame.pixels, (SAMPLE_WIDTH, max(round(height * SAMPLE_WIDTH / width), 1)), interpolation=cv2.INTER_AREA
    )
    return Sample(index, small, people, followed)


def _check(video: DrivingVideo, found: np.ndarray, several: list[int]) -> None:
    path = video.info.path
    if not found.any():
        raise BadInput(
            f"{path}: no person was found in any of {len(found)} frames; use a video that shows one person "
            "from head to hips or more, or another estimator"
        )
    if found.mean() < _MOSTLY:
        lost = describe_frames(np.flatnonzero(~found))
        crowd = "; several people are seen, so choose with person" if several else ""
        raise BadInput(
            f"{path}: the person was found in only {found.sum()} of {len(found)} frames, not in {lost}; "
            f"cut the video with start and end{crowd}"
        )
