"""Notices: what a user should know about the clips, and which frames it concerns."""

from collections.abc import Callable, Sequence

import numpy as np

from wan_orchestration.preprocess.follow import FollowedPerson
from wan_orchestration.preprocess.frames import DrivingVideo
from wan_orchestration.preprocess.geometry import PixelBox
from wan_orchestration.preprocess.keypoints import CONFIDENT
from wan_orchestration.preprocess.motion import Motion, describe_frames, stretches
from wan_orchestration.protocol.messages import Notice
from wan_orchestration.video.info import Sound

_JUMP = 0.15
"""Median movement of the joints from one frame to the next, in frame heights, from which a notice is given."""


class Notices:
    """Collects notices, and logs each when it is added. `about` begins each of them."""

    def __init__(self, log: Callable[[str], None], about: str = "") -> None:
        self._log, self._about = log, about
        self.all: list[Notice] = []

    def add(self, text: str, frames: Sequence[int] | np.ndarray | None = None) -> None:
        text = self._about + text
        if frames is None:
            self.all.append(Notice(text=text))
            self._log(text)
            return
        flags = np.zeros(max(frames) + 1, bool)
        flags[list(frames)] = True
        self.all.append(Notice(text=text, frames=[(start, end - 1) for start, end in stretches(flags)]))
        self._log(f"{text}: frames {describe_frames(frames)}")

    def about_source(self, video: DrivingVideo, sound: Sound) -> None:
        """Adds notices about flaws of the driving video's file."""
        name = video.info.path.name
        if video.broken_off:
            self.add(f"{name} is truncated: {video.broken_off}; the frames before the break were used")
        for notice in video.info.notices:
            self.add(f"{name}: {notice}")
        for notice in sound.notices:
            self.add(notice)

    def about_person(self, person: FollowedPerson) -> None:
        """Adds notices about the followed person. Call it after the gaps in the motion are filled."""
        drawn = person.motion.found("body")
        bridged, empty = np.flatnonzero(~person.found & drawn), np.flatnonzero(~drawn)
        if len(bridged):
            self.add("the person was not found; the skeleton bridges the gap", bridged)
        if len(empty):
            self.add("the person was not found for longer than max_gap; no skeleton is drawn", empty)
        if person.crowded:
            self.add("several people are visible; person chooses one of them", person.crowded)
        if person.people.unnumbered:
            self.add(
                "index:N means none of some people here; let start be a moment at which all are visible",
                [person.people.index],
            )
        if person.found_elsewhere:
            self.add(
                "the person was lost and found again elsewhere, perhaps another person",
                person.found_elsewhere,
            )

    def about_faces(self, boxes: list[PixelBox] | None, faceless: np.ndarray) -> None:
        if boxes is None:
            self.add("no face was found in any frame; the face clip is black")
        elif faceless.any():
            self.add("no face was found; its position is taken from the neighbouring frames", np.flatnonzero(faceless))

    def about_jumps(self, motion: Motion) -> None:
        """Adds a notice about frames in which the skeleton is far from where it was. Call it after smoothing."""
        seen = motion.body[..., 2] >= CONFIDENT
        both = seen[1:] & seen[:-1]
        steps = np.linalg.norm(np.diff(motion.body[..., :2], axis=0), axis=-1) / motion.size[1]
        usual = [float(np.median(step[joints])) if joints.any() else 0.0 for step, joints in zip(steps, both)]
        jumps = np.flatnonzero(np.array(usual) > _JUMP) + 1
        if len(jumps):
            self.add("the skeleton jumps from the frame before, perhaps to another person", jumps)
