"""The first pass over the driving video: follows people and finds their keypoints in every chosen frame."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np

from wan_orchestration.errors import BadInput
from wan_orchestration.preprocess.estimators.base import Detection, Estimator, Frame
from wan_orchestration.preprocess.frames import DrivingVideo, batched, prefetched
from wan_orchestration.preprocess.motion import Motion, describe_frames
from wan_orchestration.preprocess.people import NumberedPeople
from wan_orchestration.preprocess.tracking import Choice, Trackers, numbered

SAMPLES = 12
SAMPLE_WIDTH = 480
_LEAST_FOUND = 0.5
"""Smallest fraction of the frames in which the person must be found."""


@dataclass
class SampledFrame:
    """A scaled-down frame for the contact sheet."""

    index: int
    picture: np.ndarray
    people: list[Detection]
    """In the order of their numbers. Boxes are in px of the driving video."""
    followed: Detection | None


@dataclass
class FollowedPerson:
    """The result of the first pass."""

    motion: Motion
    """As found, with gaps."""
    found: np.ndarray
    """(T,) bool: whether the person was found in each frame."""
    boxes: np.ndarray
    """(T, 4) float32: x0, y0, x1, y1 px of the person in each frame; NaN where the person was not found."""
    crowded: list[int]
    """Frames with more people than are followed."""
    found_elsewhere: list[int]
    """Frames in which the lost person was found again in another place."""
    people: NumberedPeople
    samples: list[SampledFrame] = field(default_factory=list)


def follow_people(
    video: DrivingVideo,
    estimator: Estimator,
    choices: Sequence[Choice],
    progress: Callable[[int], None],
    required: bool = True,
) -> list[FollowedPerson]:
    """Finds the keypoints of the chosen people in every chosen frame. `progress` gets the number of frames done.

    BadInput, if the people are `required`: no person is found, none matches a choice, two choices mean the same
    person, or a person is found in too few frames.
    """
    trackers = Trackers(choices, float(video.fps), video.size)
    sampled = set(np.linspace(0, len(video) - 1, min(SAMPLES, len(video))).round().astype(int).tolist())
    numbers = NumberedPeople(float(video.fps), video.size)
    done = 0
    crowded: list[int] = []
    persons = [
        FollowedPerson(
            Motion(video.size, len(video)),
            np.zeros(len(video), bool),
            np.full((len(video), 4), np.nan, np.float32),
            crowded,
            tracker.found_elsewhere,
            numbers,
        )
        for tracker in trackers.all
    ]
    crowd_seen = False
    for batch in batched(prefetched(video, 2 * estimator.batch), estimator.batch):
        unique = _without_repeats(batch)
        people = dict(zip((frame.source for frame in unique), estimator.detect(unique)))
        followed = [trackers.follow(done + i, people[frame.source], frame.pixels) for i, frame in enumerate(batch)]
        seen = {
            (frame.source, number): (frame, person)
            for frame, found in zip(batch, followed)
            for number, person in enumerate(found)
            if person is not None
        }
        poses = dict(zip(seen, estimator.estimate(*zip(*seen.values())))) if seen else {}
        for i, frame in enumerate(batch):
            numbers.add(done + i, frame, people[frame.source], [one for one in followed[i] if one is not None])
            people_here = numbered(people[frame.source])
            if len(people_here) > len(choices):
                crowded.append(done + i)
            # The first frame with several people is sampled too, because their numbers refer to it.
            samples = done + i in sampled or (len(people_here) > 1 and not crowd_seen)
            crowd_seen = crowd_seen or len(people_here) > 1
            for number, (one, person) in enumerate(zip(persons, followed[i])):
                if person is not None:
                    one.motion[done + i], one.found[done + i] = poses[frame.source, number], True
                    one.boxes[done + i] = person.box
                if samples:
                    one.samples.append(_sample(done + i, frame, people_here, person))
        done += len(batch)
        progress(done)
    for one, tracker in zip(persons, trackers.all) if required else ():
        tracker.check_choice()
        _check_found(video, one.found, crowded, f" {tracker.choice}" if len(persons) > 1 else "")
    return persons


def _without_repeats(batch: list[Frame]) -> list[Frame]:
    return list({frame.source: frame for frame in batch}.values())


def _sample(index: int, frame: Frame, people: list[Detection], followed: Detection | None) -> SampledFrame:
    width, height = frame.size
    small = cv2.resize(
        frame.pixels, (SAMPLE_WIDTH, max(round(height * SAMPLE_WIDTH / width), 1)), interpolation=cv2.INTER_AREA
    )
    return SampledFrame(index, small, people, followed)


def _check_found(video: DrivingVideo, found: np.ndarray, crowded: list[int], which: str) -> None:
    path = video.info.path
    if not found.any():
        raise BadInput(
            f"{path}: no person was found in any of {len(found)} frames; use a video that shows one person "
            "from head to hips or more, or another estimator"
        )
    if found.mean() < _LEAST_FOUND:
        lost = describe_frames(np.flatnonzero(~found))
        hint = "; several people are visible, so choose one with person" if crowded else ""
        raise BadInput(
            f"{path}: the person{which} was found in only {found.sum()} of {len(found)} frames, not in {lost}; "
            f"cut the video with start and end{hint}"
        )
