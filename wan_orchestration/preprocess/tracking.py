"""Which of the people in a video is meant, and keeping to that person."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Self

from wan_orchestration.errors import BadInput
from wan_orchestration.preprocess.estimators.base import Box, Detection, overlap, shared

_SAME = 0.3
"""Overlap (intersection over union) from which a box is the person's next one."""
_FORGET_SECONDS = 1.0
"""A person unseen for so long is looked for anywhere in the frame."""
_CHOICE_SECONDS = 1.0
"""A point or box that is nobody's in the first so many seconds that show people is a mistake."""
_LISTED = 8
"""People that an error lists."""
_TOUCHING = 0.1
"""Part of a box, or of a person's, that they must have in common."""


@dataclass(frozen=True)
class Choice:
    """`largest`, `index:2`, `box:x0,y0,x1,y1` or `point:x,y`: who of several people is followed.

    Coordinates are px of the driving video as it is shown; when none is above 1 they are parts of its width and
    height. They are those of the first frame that shows people, or of a frame in the second after it. People are
    numbered by size, 1 is the largest, in the first frame that shows as many.
    """

    kind: Literal["largest", "index", "box", "point"]
    values: tuple[float, ...] = ()

    def __str__(self) -> str:
        return ":".join([self.kind, *([",".join(f"{value:g}" for value in self.values)] if self.values else [])])

    @classmethod
    def parse(cls, text: str) -> Self:
        """From a `PreprocessSettings.person`, whose form has been checked."""
        kind, _, numbers = text.partition(":")
        values = tuple(float(number) for number in numbers.split(",") if number)
        if kind == "box" and (values[0] >= values[2] or values[1] >= values[3]):
            raise BadInput(f"person: found {text!r}, expected box:x0,y0,x1,y1 with x0 < x1 and y0 < y1")
        return cls(kind, values)  # pyright: ignore[reportArgumentType]

    def pick(self, people: Sequence[Detection], size: tuple[int, int]) -> Detection | None:
        """The person meant, if this frame of `size` (width, height) shows them."""
        by_size = numbered(people)
        if self.kind == "largest":
            return by_size[0] if by_size else None
        if self.kind == "index":
            place = int(self.values[0]) - 1
            return by_size[place] if place < len(by_size) else None
        in_parts = max(self.values) <= 1
        values = [value * size[axis % 2] if in_parts else value for axis, value in enumerate(self.values)]
        if self.kind == "point":
            x, y = values
            inside = [p for p in by_size if p.box[0] <= x <= p.box[2] and p.box[1] <= y <= p.box[3]]
            # Of people one behind the other, the point says who by lying nearest to the middle.
            return min(inside, key=lambda p: math.dist(_centre(p.box), (x, y)) / math.sqrt(p.area), default=None)
        x0, y0, x1, y1 = values
        box, own = (x0, y0, x1, y1), (x1 - x0) * (y1 - y0)
        touched = [p for p in by_size if shared(p.box, box) > _TOUCHING * min(p.area, own)]
        return max(touched, key=lambda p: overlap(p.box, box), default=None)


@dataclass
class Tracker:
    """Follows one person from frame to frame by overlap with where they should be by now."""

    choice: Choice
    fps: float
    size: tuple[int, int]
    _box: Box | None = None
    _velocity: tuple[float, float] = (0.0, 0.0)
    _unseen: int = 0
    _passed_over: int = 0
    """Frames that show people, none of whom was meant."""
    _crowd: tuple[int, Sequence[Detection]] = (0, ())
    """The first of these with the most people, and the people."""
    taken_up_again: list[int] = field(default_factory=list)
    """Frames in which the person came back somewhere else, after having been lost."""

    def follow(self, index: int, people: Sequence[Detection]) -> Detection | None:
        """The person among those of frame `index`, None where they are not seen. Frames come in order.

        BadInput: people have been seen for a while, and nobody where the choice says.
        """
        people = [person for person in people if person.area > 0]
        if self._box is None:
            found = self.choice.pick(people, self.size)
            if found is None and people:
                self._pass_over(index, people)
        else:
            found = self._next(people)
            if found is None and self._unseen >= self.fps * _FORGET_SECONDS:
                found = self._most_alike(people)
                if found is not None:
                    self.taken_up_again.append(index)
        if found is None:
            self._unseen += 1
        else:
            self._see(found.box)
        return found

    def check_choice(self) -> None:
        """BadInput: people were seen, but never the one meant."""
        if self._box is not None or not self._passed_over:
            return
        index, people = self._crowd
        largest = enumerate(numbered(people)[:_LISTED], 1)
        boxes = [f"{n} in box:{','.join(f'{edge:.0f}' for edge in p.box)}" for n, p in largest]
        found = {
            "index": f"no frame shows more than {len(people)}",
            "point": "the point lies inside nobody",
            "box": "the box touches nobody",
        }
        raise BadInput(
            f"person: found {str(self.choice)!r}, but {found[self.choice.kind]}; frame {index} "
            f"({index / self.fps:.2f} s, {self.size[0]}x{self.size[1]} px) shows {', '.join(boxes)}; write index:N "
            "with one of these numbers, one of these boxes, or a point:x,y inside one"
        )

    def _pass_over(self, index: int, people: Sequence[Detection]) -> None:
        self._passed_over += 1
        if len(people) > len(self._crowd[1]):
            self._crowd = index, people
        # More people may come later, but a place is one in the first frames.
        if self.choice.kind != "index" and self._passed_over >= self.fps * _CHOICE_SECONDS:
            self.check_choice()

    def _see(self, box: Box) -> None:
        if self._box is not None and self._unseen < self.fps * _FORGET_SECONDS:
            steps = self._unseen + 1
            moved = [(new - old) / steps for new, old in zip(_centre(box), _centre(self._box))]
            # Half old, half new: a box's centre jumps about as arms are raised and lowered.
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

        def likeness(person: Detection) -> float:
            return max(overlap(person.box, expected), overlap(person.box, last))

        best = max(people, key=likeness, default=None)
        return best if best is not None and likeness(best) >= _SAME else None

    def _most_alike(self, people: Sequence[Detection]) -> Detection | None:
        """The person nearest in size, then place, to the one lost."""
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
    """By size, the largest first: the order in which people are numbered from 1."""
    return sorted(people, key=lambda person: -person.area)


def _centre(box: Box) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
