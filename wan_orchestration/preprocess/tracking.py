"""Chooses one person in a video, and tracks this person from frame to frame."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Self

from wan_orchestration.errors import BadInput
from wan_orchestration.preprocess.estimators.base import Box, Detection, intersection, iou

_SAME_PERSON = 0.3
"""Smallest intersection over union at which a box in the next frame counts as the same person."""
_LOST_SECONDS = 1.0
"""After this time without the person, the tracker accepts the most similar person anywhere in the frame."""
_CHOICE_SECONDS = 1.0
"""A point or box must match a person within this time from the first frame that shows people."""
_MOST_LISTED = 8
"""The most people that an error lists."""
_TOUCHING = 0.1
"""Fraction of the smaller box that the chosen box and a person's box must share."""


@dataclass(frozen=True)
class Choice:
    """Which of several people is followed: `largest`, `index:2`, `box:x0,y0,x1,y1` or `point:x,y`.

    Coordinates are px of the driving video as displayed. If none is above 1, they are fractions of its width and
    height. They refer to the first frame that shows people, or to a frame up to one second later. An index numbers
    people by size, 1 being the largest, in the first frame that shows that many people.
    """

    kind: Literal["largest", "index", "box", "point"]
    values: tuple[float, ...] = ()

    def __str__(self) -> str:
        return ":".join([self.kind, *([",".join(f"{value:g}" for value in self.values)] if self.values else [])])

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parses `PreprocessSettings.person`, whose syntax is already checked. BadInput: a box without area."""
        kind, _, numbers = text.partition(":")
        values = tuple(float(number) for number in numbers.split(",") if number)
        if kind == "box" and (values[0] >= values[2] or values[1] >= values[3]):
            raise BadInput(f"person: found {text!r}, expected box:x0,y0,x1,y1 with x0 < x1 and y0 < y1")
        return cls(kind, values)  # pyright: ignore[reportArgumentType]

    def pick(self, people: Sequence[Detection], size: tuple[int, int]) -> Detection | None:
        """The chosen person, or None if this frame of `size` (width, height) does not show them."""
        by_size = numbered(people)
        if self.kind == "largest":
            return by_size[0] if by_size else None
        if self.kind == "index":
            place = int(self.values[0]) - 1
            return by_size[place] if place < len(by_size) else None
        fractions = max(self.values) <= 1
        values = [value * size[axis % 2] if fractions else value for axis, value in enumerate(self.values)]
        if self.kind == "point":
            x, y = values
            inside = [p for p in by_size if p.box[0] <= x <= p.box[2] and p.box[1] <= y <= p.box[3]]
            # If boxes overlap, the point means the person whose centre is nearest, in proportion to the person's size.
            return min(inside, key=lambda p: math.dist(_centre(p.box), (x, y)) / math.sqrt(p.area), default=None)
        x0, y0, x1, y1 = values
        box, own = (x0, y0, x1, y1), (x1 - x0) * (y1 - y0)
        touching = [p for p in by_size if intersection(p.box, box) > _TOUCHING * min(p.area, own)]
        return max(touching, key=lambda p: iou(p.box, box), default=None)


@dataclass
class Tracker:
    """Follows one person from frame to frame, by the overlap of boxes with the person's expected position."""

    choice: Choice
    fps: float
    size: tuple[int, int]
    _box: Box | None = None
    _velocity: tuple[float, float] = (0.0, 0.0)
    _unseen: int = 0
    """Number of frames since the person was last seen."""
    _unmatched: int = 0
    """Number of frames so far that show people, but not the chosen one."""
    _most_people: tuple[int, Sequence[Detection]] = (0, ())
    """The first of these frames with the most people, and the people."""
    found_elsewhere: list[int] = field(default_factory=list)
    """Frames in which the lost person was found again in another place."""

    def follow(self, index: int, people: Sequence[Detection]) -> Detection | None:
        """The followed person among the people of frame `index`; None if not visible. Call it for frames in order.

        BadInput: no person matched the chosen point or box within `_CHOICE_SECONDS`.
        """
        people = [person for person in people if person.area > 0]
        if self._box is None:
            found = self.choice.pick(people, self.size)
            if found is None and people:
                self._count_unmatched(index, people)
        else:
            found = self._next(people)
            if found is None and self._unseen >= self.fps * _LOST_SECONDS:
                found = self._most_similar(people)
                if found is not None:
                    self.found_elsewhere.append(index)
        if found is None:
            self._unseen += 1
        else:
            self._move_to(found.box)
        return found

    def check_choice(self) -> None:
        """BadInput: frames showed people, but never the chosen one."""
        if self._box is not None or not self._unmatched:
            return
        index, people = self._most_people
        largest = enumerate(numbered(people)[:_MOST_LISTED], 1)
        boxes = [f"{n} in box:{','.join(f'{edge:.0f}' for edge in p.box)}" for n, p in largest]
        found = {
            "index": f"no frame shows more than {len(people)}",
            "point": "the point lies inside no person",
            "box": "the box touches no person",
        }
        raise BadInput(
            f"person: found {str(self.choice)!r}, but {found[self.choice.kind]}; frame {index} "
            f"({index / self.fps:.2f} s, {self.size[0]}x{self.size[1]} px) shows {', '.join(boxes)}; write index:N "
            "with one of these numbers, one of these boxes, or a point:x,y inside one"
        )

    def _count_unmatched(self, index: int, people: Sequence[Detection]) -> None:
        self._unmatched += 1
        if len(people) > len(self._most_people[1]):
            self._most_people = index, people
        # An index may match later, when more people appear. A point or box refers to the first frames.
        if self.choice.kind != "index" and self._unmatched >= self.fps * _CHOICE_SECONDS:
            self.check_choice()

    def _move_to(self, box: Box) -> None:
        if self._box is not None and self._unseen < self.fps * _LOST_SECONDS:
            steps = self._unseen + 1
            moved = [(new - old) / steps for new, old in zip(_centre(box), _centre(self._box))]
            # The mean of old and new velocity: raised or lowered arms make a box's centre jump.
            self._velocity = ((self._velocity[0] + moved[0]) / 2, (self._velocity[1] + moved[1]) / 2)
        else:
            self._velocity = (0.0, 0.0)
        self._box, self._unseen = box, 0

    def _expected(self) -> Box:
        assert self._box is not None
        steps = self._unseen + 1
        dx, dy = self._velocity[0] * steps, self._velocity[1] * steps
        x0, y0, x1, y1 = self._box
        return x0 + dx, y0 + dy, x1 + dx, y1 + dy

    def _next(self, people: Sequence[Detection]) -> Detection | None:
        assert self._box is not None
        expected = self._expected()
        last = self._box

        def similarity(person: Detection) -> float:
            return max(iou(person.box, expected), iou(person.box, last))

        best = max(people, key=similarity, default=None)
        return best if best is not None and similarity(best) >= _SAME_PERSON else None

    def _most_similar(self, people: Sequence[Detection]) -> Detection | None:
        """The person who is most similar to the lost one in size and position."""
        assert self._box is not None
        lost = Detection(self._box, 1.0)
        diagonal = math.hypot(*self.size)

        def distance(person: Detection) -> float:
            return (
                abs(math.log(person.area / max(lost.area, 1)))
                + math.dist(_centre(person.box), _centre(lost.box)) / diagonal
            )

        return min(people, key=distance, default=None)


def numbered(people: Sequence[Detection]) -> list[Detection]:
    """People by size, the largest first: the order of their numbers, which start at 1."""
    return sorted(people, key=lambda person: -person.area)


def _centre(box: Box) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
