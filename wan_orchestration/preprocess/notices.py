"""What a user should know about a run, and the frames it concerns."""

from collections.abc import Callable, Sequence

import numpy as np

from wan_orchestration.preprocess.geometry import Box
from wan_orchestration.preprocess.motion import describe_frames, runs
from wan_orchestration.preprocess.people import Person
from wan_orchestration.protocol.messages import Notice


class Notices:
    """Collects notices, and logs each as it comes."""

    def __init__(self, log: Callable[[str], None]) -> None:
        self._log = log
        self.all: list[Notice] = []

    def add(self, text: str, frames: Sequence[int] | np.ndarray | None = None) -> None:
        if frames is None:
            self.all.append(Notice(text=text))
            self._log(text)
            return
        flags = np.zeros(max(frames) + 1, bool)
        flags[list(frames)] = True
        self.all.append(Notice(text=text, frames=[(start, end - 1) for start, end in runs(flags)]))
        self._log(f"{text}: frames {describe_frames(frames)}")

    def about_person(self, person: Person) -> None:
        """After gaps have been closed."""
        drawn = person.motion.found("body")
        bridged, empty = np.flatnonzero(~person.found & drawn), np.flatnonzero(~drawn)
        if len(bridged):
            self.add("the person was not found; the skeleton bridges the gap", bridged)
        if len(empty):
            self.add("the person was not found for longer than max_gap; no skeleton is drawn", empty)
        if person.several:
            self.add("several people are seen; the contact sheet numbers them", person.several)
        if person.taken_up_again:
            self.add("lost and taken up again elsewhere, perhaps another person", person.taken_up_again)

    def about_faces(self, boxes: list[Box] | None, faceless: np.ndarray) -> None:
        if boxes is None:
            self.add("no face was found in any frame; the face clip is black")
        elif faceless.any():
            self.add("no face was found; its place is taken from the frames around", np.flatnonzero(faceless))
