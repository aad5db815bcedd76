"""Characters of flat, bold parts that perform smooth random motions, with exact keypoints and face landmarks.

A figure has three independent parts: a `Build` (proportions), a `Look` (colours, hair) and an `Act` (joints and face,
frame by frame). Each part of the body has its own colour, so that it can be found by colour in a generated picture.
Lengths are in heights of the picture, x from its middle, y from its top. Right and left are the character's, so its
right is on the left of the picture.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Self

import numpy as np

from wan_orchestration.preprocess.geometry import PixelBox, face_box
from wan_orchestration.preprocess.keypoints import Pose

FPS = 30
Colour = tuple[int, int, int]

BOLD: tuple[Colour, ...] = (
    (212, 45, 48), (240, 136, 28), (246, 208, 48), (62, 168, 70), (28, 168, 172),
    (52, 92, 222), (138, 66, 190), (238, 108, 172), (150, 208, 62), (34, 38, 88),
)  # fmt: skip
"""Colours of hair, clothes and limbs. A character has each of them at most once."""
SKIN: tuple[Colour, ...] = ((255, 222, 196), (240, 188, 146), (200, 144, 102), (150, 102, 72))
PALE: tuple[Colour, ...] = (
    (206, 230, 244), (232, 220, 240), (244, 236, 208), (214, 238, 214), (238, 216, 214), (220, 222, 226),
)  # fmt: skip
"""Colours of backgrounds."""
WHITE, PUPIL, MOUTH = (255, 255, 255), (24, 22, 34), (132, 16, 40)
HAIR = ("short", "buns", "long")
ARMS = ("right_arm", "left_arm")
LEGS = ("right_leg", "left_leg")


@dataclass(frozen=True)
class Build:
    """Proportions, and how large the character is in the picture."""

    head: float = 0.14
    torso: float = 0.20
    shoulders: float = 0.085
    hips: float = 0.052
    upper_arm: float = 0.115
    forearm: float = 0.105
    thigh: float = 0.145
    shin: float = 0.135
    zoom: float = 1.0

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Self:
        varied = {field.name: field.default * rng.uniform(0.93, 1.07) for field in fields(cls)}
        return cls(**varied | {"zoom": rng.uniform(0.95, 1.03)})


@dataclass(frozen=True)
class Look:
    """Colours of a character, and of the `wall` and `floor` of its place."""

    skin: Colour
    hair: Colour
    torso: Colour
    right_arm: Colour
    left_arm: Colour
    right_leg: Colour
    left_leg: Colour
    wall: Colour
    floor: Colour
    style: str
    """One of HAIR."""

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Self:
        parts = ("hair", "torso", "right_arm", "left_arm", "right_leg", "left_leg")
        bold = dict(zip(parts, (jitter(rng, BOLD[i]) for i in rng.permutation(len(BOLD)))))
        wall, floor = rng.permutation(len(PALE))[:2]
        return cls(
            skin=jitter(rng, SKIN[rng.integers(len(SKIN))], 5),
            **bold,
            wall=jitter(rng, PALE[wall], 5),
            floor=shade(jitter(rng, PALE[floor], 5), 0.72),
            style=HAIR[rng.integers(len(HAIR))],
        )


@dataclass(frozen=True)
class Act:
    """What a character does: arrays over T frames. Angles in radians.

    hips: (T, 2) middle of the hips. lean, tilt: of the torso, and of the head relative to it, clockwise. turn: of the
    head, -1 (left side of the picture) to 1. arms, legs: (T, 2, 2) by side (right, left) and bone; 0 is straight down,
    positive is outwards. mouth, eyes: 0 shut to 1 open. smile: -1 to 1.
    """

    hips: np.ndarray
    lean: np.ndarray
    tilt: np.ndarray
    turn: np.ndarray
    arms: np.ndarray
    legs: np.ndarray
    mouth: np.ndarray
    eyes: np.ndarray
    smile: np.ndarray

    def __len__(self) -> int:
        return len(self.lean)

    def with_face(self, other: "Act") -> "Act":
        """The same motion with the expressions of another act."""
        return replace(self, mouth=other.mouth, eyes=other.eyes, smile=other.smile)


def perform(rng: np.random.Generator, frames: int) -> Act:
    """A random dance at 30 frames a second."""

    def wave(low: float, high: float, fastest: float = 0.7) -> np.ndarray:
        return low + (high - low) * swing(rng, frames, fastest)

    raise_ = [wave(*sorted(rng.uniform(0.2, 2.5, 2))) for _ in range(2)]
    arms = [np.stack([up, up + wave(*sorted(rng.uniform(-0.3, 1.3, 2)))], 1) for up in raise_]
    spread = [wave(-0.05, 0.45) for _ in range(2)]
    legs = [np.stack([out, out - wave(0.0, 0.5)], 1) for out in spread]
    blinks = np.min(
        [1 - np.exp(-(((np.arange(frames) - rng.uniform(-20, frames + 20)) / 3.5) ** 2)) for _ in range(2)], 0
    )
    return Act(
        hips=np.stack([rng.uniform(-0.03, 0.03) + wave(-0.05, 0.05), wave(0.585, 0.625)], 1),
        lean=wave(-0.16, 0.16),
        tilt=wave(-0.2, 0.2),
        turn=wave(-1, 1),
        arms=np.stack(arms, 1),
        legs=np.stack(legs, 1),
        mouth=np.clip(wave(-0.4, 1.3, 1.3), 0, 1),
        eyes=blinks * rng.uniform(0.85, 1.0),
        smile=wave(-1, 1),
    )


def stand(rng: np.random.Generator) -> Act:
    """One frame of a character that stands for a picture, as in a reference."""
    u = rng.uniform
    return Act(
        hips=np.array([[u(-0.03, 0.03), u(0.59, 0.61)]]),
        lean=u(-0.03, 0.03, 1),
        tilt=u(-0.05, 0.05, 1),
        turn=u(-0.2, 0.2, 1),
        arms=u([0.45, 0.45], [0.8, 0.9], (1, 2, 2)),
        legs=u([0.06, 0.0], [0.16, 0.1], (1, 2, 2)),
        mouth=np.array([max(u(-1.0, 1.0), 0.0)]),
        eyes=u(0.85, 1.0, 1),
        smile=u(-0.5, 1.0, 1),
    )


def swing(rng: np.random.Generator, frames: int, fastest: float) -> np.ndarray:
    """(frames,) from about 0 to 1: two sines of random speed up to `fastest` Hz."""
    t = np.arange(frames) / FPS
    share = rng.uniform(0.5, 1.0)
    slow, fast = (np.sin(2 * np.pi * (rng.uniform(0.25, 1) * fastest * t + rng.random())) for _ in range(2))
    return 0.5 + 0.5 * (share * slow + (1 - share) * fast)


class Figure:
    """A build that acts: the positions of its parts, frame by frame. Points are (T, 2)."""

    def __init__(self, build: Build, act: Act) -> None:
        self.build, self.act = build, act
        b, z = build, build.zoom
        up = turned(act.lean, (0, -1))
        across = turned(act.lean, (1, 0))
        hips = np.stack([act.hips[:, 0], 0.91 - (0.91 - act.hips[:, 1]) * z], 1)
        self.neck = hips + up * b.torso * z
        self.radius = b.head * z
        self.angle = act.lean + act.tilt
        self.head = self.neck + turned(self.angle, (0, -1)) * self.radius * 0.95
        self.across = across
        sides = (-1, 1)
        self.shoulders = [self.neck + (across * side * b.shoulders - up * 0.03) * z for side in sides]
        self.hips = [hips + across * side * b.hips * z for side in sides]
        self.elbows, self.wrists, self.knees, self.ankles, self.toes, self.hands = [], [], [], [], [], []
        for i, side in enumerate(sides):
            ways = [turned(-side * act.arms[:, i, bone], (0, 1)) for bone in (0, 1)]
            self.elbows.append(self.shoulders[i] + ways[0] * b.upper_arm * z)
            self.wrists.append(self.elbows[i] + ways[1] * b.forearm * z)
            self.hands.append(self._hand(self.wrists[i], -side * act.arms[:, i, 1], side))
            ways = [turned(-side * act.legs[:, i, bone], (0, 1)) for bone in (0, 1)]
            self.knees.append(self.hips[i] + ways[0] * b.thigh * z)
            self.ankles.append(self.knees[i] + ways[1] * b.shin * z)
            self.toes.append(self.ankles[i] + np.array([side * 0.035, 0.022]) * z)

    def _hand(self, wrist: np.ndarray, angle: np.ndarray, side: int) -> np.ndarray:
        """Keypoints (T, 21, 2) of an open hand, the thumb towards the body."""
        points = [wrist]
        for spread in (-0.9, -0.4, -0.1, 0.2, 0.5):
            way = turned(angle + side * spread, (0, 1))
            points += [wrist + way * 0.05 * self.build.zoom * part for part in (0.4, 0.6, 0.8, 1.0)]
        return np.stack(points, 1)

    def on_head(self, t: int) -> Callable[[float, float], np.ndarray]:
        """A function that maps positions on the head (x right, y down, in radii) to positions in the picture."""
        cos, sin = np.cos(self.angle[t]), np.sin(self.angle[t])
        x0, y0 = self.head[t]
        r = self.radius
        return lambda x, y: np.array([x0 + r * (cos * x - sin * y), y0 + r * (sin * x + cos * y)])

    def pose(self, t: int, size: tuple[int, int]) -> Pose:
        """Keypoints of frame t in a picture of `size` (width, height) px."""
        at, turn = self.on_head(t), 0.22 * self.act.turn[t]
        right, left = (
            [places[i][t] for places in (self.shoulders, self.elbows, self.wrists, self.hips, self.knees, self.ankles)]
            for i in (0, 1)
        )
        features = [at(-0.36 + turn, 0.05), at(0.36 + turn, 0.05), at(-0.92, 0.15), at(0.92, 0.15)]
        body = [at(turn * 1.3, 0.32), self.neck[t], *right[:3], *left[:3], *right[3:], *left[3:], *features]
        body += [self.toes[1][t], self.toes[0][t]]

        def found(points: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
            places = np.array(points) * size[1] + (size[0] / 2, 0)
            return np.column_stack([places, np.ones(len(places))])

        return Pose(size, found(body), found(self.hands[1][t]), found(self.hands[0][t]), found(self._landmarks(t)))

    def _landmarks(self, t: int) -> list[np.ndarray]:
        """68 points of the face: jaw, brows, nose, eyes, mouth, in the usual order."""
        at, act = self.on_head(t), self.act
        turn = 0.22 * act.turn[t]
        points = [at(0.8 * np.cos(a) + 0.3 * turn, 0.1 + 0.78 * np.sin(a)) for a in np.linspace(np.pi, 0, 17)]
        for side in (-1, 1):
            points += [at(side * 0.36 + x + turn, -0.32) for x in np.linspace(-0.2, 0.2, 5)]
        points += [at(turn * 1.2, y) for y in np.linspace(0.05, 0.28, 4)]
        points += [at(turn * 1.2 + x, 0.34) for x in np.linspace(-0.1, 0.1, 5)]
        for side in (-1, 1):
            ring = np.linspace(np.pi, -np.pi, 7)[:-1]
            points += [at(side * 0.36 + turn + 0.2 * np.cos(a), 0.05 - 0.2 * act.eyes[t] * np.sin(a)) for a in ring]
        upper, lower = mouth_lines(act, t)
        outer = [*upper[:: len(upper) // 6][:7], *lower[::-1][:: len(lower) // 6][1:6]]
        inner = [*upper[1:-1:2][:5], *lower[::-1][2:-1:3][:3]]
        return points + [at(turn + x, y) for x, y in [*outer, *inner]]

    def face_box(self, t: int, size: tuple[int, int]) -> PixelBox:
        """The box of the face crop of frame t in a picture of `size` (width, height) px."""
        box = face_box(self.pose(t, size).face, size)
        assert box is not None
        return box


def mouth_lines(act: Act, t: int) -> tuple[np.ndarray, np.ndarray]:
    """Upper and lower edge of the mouth, each (13, 2), in radii of the head, from its right corner to its left."""
    u = np.linspace(-1, 1, 13)
    curve = 0.52 - 0.12 * act.smile[t] * u**2
    drop = 0.05 + 0.36 * act.mouth[t] * np.sqrt(1 - u**2)
    x = u * (0.34 - 0.06 * act.mouth[t])
    return np.column_stack([x, curve]), np.column_stack([x, curve + drop])


def turned(angle: np.ndarray, way: tuple[int, int]) -> np.ndarray:
    """(T, 2): `way` turned clockwise by each of the (T,) angles."""
    x, y = way
    return np.stack([np.cos(angle) * x - np.sin(angle) * y, np.sin(angle) * x + np.cos(angle) * y], 1)


def shade(colour: Colour, by: float) -> Colour:
    red, green, blue = (min(int(channel * by), 255) for channel in colour)
    return red, green, blue


def jitter(rng: np.random.Generator, colour: Colour, by: int = 10) -> Colour:
    red, green, blue = np.clip(np.array(colour) + rng.integers(-by, by + 1, 3), 0, 255).tolist()
    return red, green, blue
