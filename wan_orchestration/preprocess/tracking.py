"""Chooses people in a video, and tracks them from frame to frame, without confusing one with another."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Literal, Self

import numpy as np

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
_APART = 0.1
"""At most this intersection over union with any other person's box, a person is seen alone."""
_LEARN = 0.1
"""Share of the newest frame in what is known of a person's colours."""


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

    @property
    def started(self) -> bool:
        """Whether the chosen person has been seen."""
        return self._box is not None

    def follow(self, index: int, people: Sequence[Detection]) -> Detection | None:
        """The followed person among the people of frame `index`; None if not visible. Call it for frames in order.

        BadInput: no person matched the chosen point or box within `_CHOICE_SECONDS`.
        """
        people = [person for person in people if person.area > 0]
        if self._box is None:
            found = self.choose(index, people)
        else:
            found = self._next(people) or self.find_again(index, people)
        self.record(found)
        return found

    def choose(self, index: int, people: Sequence[Detection]) -> Detection | None:
        """The chosen person, before anybody is followed. BadInput as for `follow`."""
        found = self.choice.pick(people, self.size)
        if found is None and people:
            self._count_unmatched(index, people)
        return found

    def similarity(self, person: Detection) -> float:
        """Overlap with the followed person's expected or last box, 0..1; 0 if it is too small for the same person."""
        assert self._box is not None
        overlap = max(iou(person.box, self._expected()), iou(person.box, self._box))
        return overlap if overlap >= _SAME_PERSON else 0.0

    def find_again(self, index: int, people: Sequence[Detection]) -> Detection | None:
        """The person who is most similar to one who has been lost for `_LOST_SECONDS`."""
        if self._unseen < self.fps * _LOST_SECONDS:
            return None
        found = self._most_similar(people)
        if found is not None:
            self.found_elsewhere.append(index)
        return found

    def record(self, found: Detection | None) -> None:
        """Record where the person is in the next frame; None: not visible."""
        if found is None:
            self._unseen += 1
        else:
            self._move_to(found.box)

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
        best = max(people, key=self.similarity, default=None)
        return best if best is not None and self.similarity(best) else None

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


class Trackers:
    """Follows several people together. Each frame's people are assigned to them so that no two follow the same person.

    People whose boxes overlap are told apart by their motion, and by the colours that they had while they were alone.
    """

    def __init__(self, choices: Sequence[Choice], fps: float, size: tuple[int, int]) -> None:
        self.all = [Tracker(choice, fps, size) for choice in choices]
        self._colours: list[np.ndarray | None] = [None] * len(choices)

    def follow(self, index: int, people: Sequence[Detection], pixels: np.ndarray) -> list[Detection | None]:
        """The followed people in frame `index`, whose `pixels` are (H, W, 3) uint8. Call it for frames in order.

        BadInput: as for `Tracker.follow`, or two choices mean the same person.
        """
        if len(self.all) == 1:
            return [self.all[0].follow(index, people)]
        people = [person for person in people if person.area > 0]
        colours = [_colours(person, pixels) for person in people]
        places = _assign([self._scores(i, people, colours) for i in range(len(self.all))])
        found = [None if place is None else people[place] for place in places]
        for i, tracker in enumerate(self.all):
            if found[i] is None and tracker.started:
                found[i] = tracker.find_again(index, [one for one in people if not _among(one, found)])
            elif not tracker.started:
                found[i] = self._chosen(i, index, people, found)
        for i, (tracker, person) in enumerate(zip(self.all, found)):
            tracker.record(person)
            if person is not None and all(iou(person.box, one.box) <= _APART for one in people if one is not person):
                known, new = self._colours[i], colours[next(k for k, one in enumerate(people) if one is person)]
                self._colours[i] = new if known is None else known + _LEARN * (new - known)
        return found

    def _scores(self, i: int, people: Sequence[Detection], colours: Sequence[np.ndarray]) -> dict[int, float]:
        """How likely each of the people is the followed one, above 0; only those who may be."""
        tracker, known = self.all[i], self._colours[i]
        if not tracker.started:
            return {}
        scores = {place: tracker.similarity(person) for place, person in enumerate(people)}
        likeness = {place: 0.0 if known is None else float(np.minimum(known, colours[place]).sum()) for place in scores}
        return {place: score + likeness[place] for place, score in scores.items() if score}

    def _chosen(
        self, i: int, index: int, people: Sequence[Detection], found: Sequence[Detection | None]
    ) -> Detection | None:
        tracker = self.all[i]
        person = tracker.choose(index, people)
        if person is None or not _among(person, found):
            return person
        other = next(k for k, one in enumerate(found) if one is person)
        box = ",".join(f"{edge:.0f}" for edge in person.box)
        raise BadInput(
            f"characters {other + 1} and {i + 1} mean the same person: {self.all[other].choice} and {tracker.choice} "
            f"both choose box:{box} in frame {index}; give each another person, by a box or a point"
        )


def _assign(scores: Sequence[Mapping[int, float]]) -> list[int | None]:
    """For each row of scores by column, a column of its own or None, so that the sum of their scores is largest."""

    @cache
    def best(row: int, used: frozenset[int]) -> tuple[float, tuple[int | None, ...]]:
        if row == len(scores):
            return 0.0, ()
        total, rest = best(row + 1, used)
        options: list[tuple[float, tuple[int | None, ...]]] = [(total, (None, *rest))]
        for column, score in scores[row].items():
            if column not in used:
                total, rest = best(row + 1, used | {column})
                options.append((score + total, (column, *rest)))
        return max(options, key=lambda option: option[0])

    return list(best(0, frozenset())[1])


def _among(person: Detection, others: Sequence[Detection | None]) -> bool:
    return any(person is other for other in others)


def _colours(person: Detection, pixels: np.ndarray) -> np.ndarray:
    """(216,) float: the share of each colour, six levels a channel, in the middle of the person's box."""
    height, width = pixels.shape[:2]
    x0, y0, x1, y1 = person.box
    rows = slice(max(int(y0 * 0.9 + y1 * 0.1), 0), min(max(int(y0 * 0.2 + y1 * 0.8), 1), height))
    columns = slice(max(int(x0 * 0.75 + x1 * 0.25), 0), min(max(int(x0 * 0.25 + x1 * 0.75), 1), width))
    levels = (pixels[rows, columns].reshape(-1, 3) // 43).astype(int) @ (36, 6, 1)
    return np.bincount(levels, minlength=216) / max(len(levels), 1)


def numbered(people: Sequence[Detection]) -> list[Detection]:
    """People by size, the largest first: the order of their numbers, which start at 1."""
    return sorted(people, key=lambda person: -person.area)


def _centre(box: Box) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
