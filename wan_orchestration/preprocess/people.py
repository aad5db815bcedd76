"""Numbers the people of a driving video, and keeps the frame that shows the most of them."""

from collections.abc import Sequence

import cv2
import numpy as np

from wan_orchestration.preprocess.estimators.base import Box, Detection, Frame
from wan_orchestration.preprocess.tracking import Choice, Tracker
from wan_orchestration.protocol.messages import LookPerson

LONGEST_SIDE = 960
"""px, of the kept frame."""
_MOST_NUMBERS = 9


class NumberedPeople:
    """The first frame with the most people, and the number N of each, as `person: index:N` means it.

    A number is given in the first frame that shows that many people. From there, it is tracked to the kept frame.
    """

    def __init__(self, fps: float, size: tuple[int, int]) -> None:
        self.index = 0
        """Number of the kept frame; of the first one if none shows a person."""
        self.seconds = 0.0
        """Its time in the driving video."""
        self.picture = np.zeros((1, 1, 3), np.uint8)
        """(H, W, 3) uint8 RGB: the kept frame, scaled down."""
        self.people: list[LookPerson] = []
        """The people who have a number, in the order of their numbers."""
        self.unnumbered = 0
        """How many more people the kept frame shows."""
        self._fps, self._size = fps, size
        self._trackers: list[Tracker] = []
        self._most = -1

    def add(self, index: int, frame: Frame, people: Sequence[Detection], followed: Sequence[Detection]) -> None:
        """Adds the next frame, its people, and those whom the clips follow."""
        people = [person for person in people if person.area > 0]
        while len(self._trackers) < min(len(people), _MOST_NUMBERS):
            choice = Choice("index", (len(self._trackers) + 1.0,))
            self._trackers.append(Tracker(choice, self._fps, self._size))
        numbers: dict[Box, int] = {}
        for number, tracker in enumerate(self._trackers, 1):
            found = tracker.follow(index, people)
            if found is not None:
                numbers.setdefault(found.box, number)
        if len(people) <= self._most:
            return
        self._most, self.index, self.seconds = len(people), index, frame.time
        self.unnumbered = len({person.box for person in people}) - len(numbers)
        self.people = [
            LookPerson(number=number, box=self._fractions(box), followed=any(one.box == box for one in followed))
            for box, number in numbers.items()
        ]
        shrink = min(LONGEST_SIDE / max(frame.size), 1.0)
        width, height = (max(round(side * shrink), 1) for side in frame.size)
        self.picture = cv2.resize(frame.pixels, (width, height), interpolation=cv2.INTER_AREA)

    def _fractions(self, box: Box) -> Box:
        x0, y0, x1, y1 = (min(max(value / self._size[axis % 2], 0.0), 1.0) for axis, value in enumerate(box))
        return round(x0, 4), round(y0, 4), round(x1, 4), round(y1, 4)
