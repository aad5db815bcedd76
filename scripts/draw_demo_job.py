"""Draws the demo job: a little dance as a skeleton, the dancer's face, and another character to dance it.

    uv run python scripts/draw_demo_job.py [FOLDER]

Everything is made up here, down to the tune, so that the job may be shared freely. The same files come out of
every run.
"""

import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import cv2
import numpy as np
from PIL import Image

from wan_orchestration.preprocess.drawing import draw_skeleton
from wan_orchestration.preprocess.keypoints import Pose
from wan_orchestration.video import concatenate, write_lossless, write_segment

WIDTH, HEIGHT = 160, 240
FPS, FRAMES = Fraction(30), 77
FACE = 512

HEAD = 29.0
UPPER_ARM, FOREARM, HAND = 22.0, 20.0, 15.0
THIGH, SHIN = 33.0, 32.0
FLOOR = 222.0

Colour = tuple[int, int, int]
Point = tuple[float, float] | np.ndarray


@dataclass(frozen=True)
class Look:
    """How a character looks; the skeleton under it is the same."""

    skin: Colour
    hair: Colour
    eyes: Colour
    top: Colour
    sleeves: Colour
    trousers: Colour
    shoes: Colour
    buns: bool
    sky: tuple[Colour, Colour]


REFERENCE = Look(
    skin=(255, 222, 196),
    hair=(214, 96, 62),
    eyes=(46, 128, 112),
    top=(66, 158, 150),
    sleeves=(92, 184, 172),
    trousers=(72, 78, 128),
    shoes=(238, 178, 74),
    buns=True,
    sky=((168, 216, 232), (250, 238, 214)),
)
DANCER = Look(
    skin=(214, 160, 118),
    hair=(52, 46, 62),
    eyes=(88, 60, 40),
    top=(210, 90, 90),
    sleeves=(210, 90, 90),
    trousers=(60, 60, 70),
    shoes=(240, 240, 240),
    buns=False,
    sky=((150, 190, 226), (120, 164, 208)),
)


@dataclass(frozen=True)
class Expression:
    """eyes: 0 shut to 1 open; mouth: 0 shut to 1 open; smile, brows, gaze and turn: -1 to 1."""

    eyes: float = 1.0
    mouth: float = 0.0
    smile: float = 0.8
    brows: float = 0.0
    gaze: float = 0.0
    turn: float = 0.0


@dataclass(frozen=True)
class Figure:
    """One moment of a character, in px of the WIDTH x HEIGHT picture; right and left are the character's own."""

    neck: np.ndarray
    head: np.ndarray
    tilt: float
    shoulders: Sequence[np.ndarray]
    elbows: Sequence[np.ndarray]
    wrists: Sequence[np.ndarray]
    hips: Sequence[np.ndarray]
    knees: Sequence[np.ndarray]
    ankles: Sequence[np.ndarray]
    toes: Sequence[np.ndarray]
    fingers: Sequence[np.ndarray]
    """Per hand (21, 2)."""
    face: Expression = field(default_factory=Expression)


def direction(angle: float) -> np.ndarray:
    """0 points down, a quarter turn to the right of the picture."""
    return np.array([np.sin(angle), np.cos(angle)])


def knee(hip: np.ndarray, ankle: np.ndarray, side: int) -> np.ndarray:
    """Where the knee is for a hip and an ankle, bent outwards."""
    way = ankle - hip
    reach = min(float(np.hypot(*way)), THIGH + SHIN - 0.01)
    along = (THIGH**2 - SHIN**2 + reach**2) / (2 * reach)
    out = np.sqrt(max(THIGH**2 - along**2, 0))
    way = way / np.hypot(*way)
    return hip + way * along + np.array([way[1], -way[0]]) * out * side


def hand(wrist: np.ndarray, angle: float, side: int) -> np.ndarray:
    """21 points of an open hand, thumb towards the body."""
    points = [wrist]
    for spread, length in ((-0.95, 0.62), (-0.35, 0.95), (-0.05, 1.0), (0.22, 0.94), (0.5, 0.78)):
        way = direction(angle + side * spread)
        points += [wrist + way * HAND * length * part for part in (0.45, 0.65, 0.83, 1.0)]
    return np.array(points)


def pose_figure(
    centre: Point,
    lean: float,
    tilt: float,
    arms: Sequence[tuple[float, float]],
    lifts: Sequence[float],
    face: Expression,
) -> Figure:
    """`centre` of the hips, `lean` and `tilt` of torso and head, `arms` (upper, fore) angles from straight down
    outwards, `lifts` of the feet in px; right before left."""
    centre = np.asarray(centre, float)
    up, across = -direction(-lean), np.array([np.cos(lean), np.sin(lean)])
    neck = centre + up * 47
    head = neck + -direction(-(lean + tilt)) * (HEAD + 4)
    sides = (-1, 1)
    shoulders = [neck + across * side * 15 - up * 4 for side in sides]
    elbows = [s + direction(side * arm[0]) * UPPER_ARM for s, side, arm in zip(shoulders, sides, arms)]
    wrists = [e + direction(side * arm[1]) * FOREARM for e, side, arm in zip(elbows, sides, arms)]
    hips = [centre + across * side * 9 for side in sides]
    ankles = [np.array([WIDTH / 2 + side * (13 + lift * 0.35), FLOOR - 7 - lift]) for side, lift in zip(sides, lifts)]
    return Figure(
        neck=neck,
        head=head,
        tilt=lean + tilt,
        shoulders=shoulders,
        elbows=elbows,
        wrists=wrists,
        hips=hips,
        knees=[knee(hip, ankle, side) for hip, ankle, side in zip(hips, ankles, sides)],
        ankles=ankles,
        toes=[ankle + np.array([side * 8, 5]) for ankle, side in zip(ankles, sides)],
        fingers=[hand(w, side * arm[1], -side) for w, side, arm in zip(wrists, sides, arms)],
        face=face,
    )


def dance(part: float) -> Figure:
    """The dance at `part` 0 to 1 of its length: four beats, arms in turn, ending as it began."""
    p = 2 * np.pi * part
    bounce = 5 * (1 - np.cos(4 * p)) / 2
    raised = np.array([1 - np.cos(p), 1 + np.cos(p)]) / 2
    wave = 0.55 * np.sin(4 * p)
    arms = [(0.35 + 1.95 * r, 0.75 + 2.0 * r + wave * (0.25 + r) * side) for r, side in zip(raised, (1, -1))]
    lifts = [11 * max(0.0, side * np.sin(2 * p)) ** 2 for side in (1, -1)]
    blink = min(1 - np.exp(-(((part - at) / 0.022) ** 2)) for at in (0.12, 0.47, 0.80))
    face = Expression(
        eyes=float(blink) * (0.85 + 0.15 * np.sin(p)),
        mouth=float(np.clip(np.sin(4 * p - 0.8), 0, 1) ** 0.7 * (0.55 + 0.45 * np.sin(p + 0.5))),
        smile=0.55 + 0.45 * np.sin(p - 1.2),
        brows=np.sin(2 * p + 0.3),
        gaze=0.8 * np.sin(p),
        turn=0.7 * np.sin(p + 0.6),
    )
    centre = (WIDTH / 2 + 6 * np.sin(2 * p), 151 + bounce)
    return pose_figure(centre, 0.10 * np.sin(2 * p), 0.16 * np.sin(2 * p + 0.9), arms, lifts, face)


def skeleton(figure: Figure) -> np.ndarray:
    """(HEIGHT, WIDTH, 3) uint8 RGB, drawn as the model expects."""
    at = head_frame(figure)
    turn = 0.16 * figure.face.turn
    right, left = ([places[i] for places in (figure.shoulders, figure.elbows, figure.wrists)] for i in (0, 1))
    right_leg, left_leg = ([places[i] for places in (figure.hips, figure.knees, figure.ankles)] for i in (0, 1))
    eyes_and_ears = [at(-0.36 + turn, 0.08), at(0.36 + turn, 0.08), at(-0.92, 0.12), at(0.92, 0.12)]
    body = [at(turn * 1.3, 0.36), figure.neck, *right, *left, *right_leg, *left_leg, *eyes_and_ears]
    body += [figure.toes[1], figure.toes[0]]

    def sure(points: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
        return np.column_stack([np.array(points), np.ones(len(points))])

    pose = Pose((WIDTH, HEIGHT), sure(body), sure(figure.fingers[1]), sure(figure.fingers[0]), np.zeros((68, 3)))
    return draw_skeleton(np.zeros((HEIGHT, WIDTH, 3), np.uint8), pose)


def head_frame(figure: Figure) -> Callable[[float, float], np.ndarray]:
    """A function from places on the head (x to the right, y down, 1 is its radius) to places in the picture."""
    cos, sin = np.cos(figure.tilt), np.sin(figure.tilt)

    def at(x: float, y: float) -> np.ndarray:
        return figure.head + HEAD * np.array([cos * x - sin * y, sin * x + cos * y])

    return at


class Pen:
    """Draws smooth shapes in px of the WIDTH x HEIGHT picture on a canvas that shows a part of it enlarged."""

    def __init__(self, canvas: np.ndarray, scale: float, corner: Point = (0, 0)) -> None:
        self.canvas, self.scale, self.corner = canvas, scale, np.asarray(corner, float)

    def _fixed(self, points: Sequence[Point] | np.ndarray) -> np.ndarray:
        return np.round((np.asarray(points) - self.corner) * self.scale * 16).astype(np.int32)

    def polygon(self, points: Sequence[Point] | np.ndarray, colour: Colour) -> None:
        cv2.fillPoly(self.canvas, [self._fixed(points)], colour, cv2.LINE_AA, 4)

    def disc(self, centre: Point, radius: float, colour: Colour) -> None:
        x, y = self._fixed([centre])[0].tolist()
        cv2.circle(self.canvas, (x, y), max(round(radius * self.scale * 16), 1), colour, -1, cv2.LINE_AA, 4)

    def ellipse(self, centre: Point, axes: Point, tilt: float, colour: Colour) -> None:
        turns = np.linspace(0, 2 * np.pi, 73)[:-1]
        x, y = axes[0] * np.cos(turns), axes[1] * np.sin(turns)
        cos, sin = np.cos(tilt), np.sin(tilt)
        self.polygon(np.asarray(centre) + np.column_stack([cos * x - sin * y, sin * x + cos * y]), colour)

    def limb(self, start: Point, end: Point, wide: float, narrow: float, colour: Colour) -> None:
        start, end = np.asarray(start, float), np.asarray(end, float)
        way = (end - start) / max(np.hypot(*(end - start)), 1e-6)
        across = np.array([-way[1], way[0]])
        corners = [start + across * wide, end + across * narrow, end - across * narrow, start - across * wide]
        self.polygon(corners, colour)
        self.disc(start, wide, colour)
        self.disc(end, narrow, colour)

    def stroke(self, points: Sequence[Point], thickness: float, colour: Colour) -> None:
        for start, end in pairwise(points):
            self.limb(start, end, thickness / 2, thickness / 2, colour)


def shade(colour: Colour, by: float) -> Colour:
    red, green, blue = (min(int(channel * by), 255) for channel in colour)
    return red, green, blue


def draw_head(pen: Pen, look: Look, figure: Figure) -> None:
    at, face, tilt, r = head_frame(figure), figure.face, figure.tilt, HEAD
    turn = 0.16 * face.turn
    dark = shade(look.hair, 0.72)
    if look.buns:
        for side in (-1, 1):
            pen.disc(at(side * 0.78, -0.86), r * 0.37, dark)
            pen.disc(at(side * 0.79, -0.88), r * 0.31, look.hair)
    pen.ellipse(at(0, -0.06), (r * 1.1, r * 1.08), tilt, dark)
    for side in (-1, 1):
        pen.ellipse(at(side * 0.95 - turn * 0.3, 0.22), (r * 0.16, r * 0.2), tilt, shade(look.skin, 0.92))
    pen.ellipse(at(turn * 0.3, 0.12), (r * 0.93, r * 0.88), tilt, look.skin)

    for side in (-1, 1):
        pen.ellipse(at(side * 0.54 + turn, 0.5), (r * 0.15, r * 0.09), tilt, blend(look.skin, (240, 110, 110), 0.38))
        x, y = side * 0.36 + turn, 0.2
        if face.eyes > 0.2:
            pen.ellipse(at(x, y), (r * 0.185, r * 0.25 * face.eyes), tilt, (255, 255, 255))
            size = min(1.0, face.eyes + 0.15)
            pupil = at(x + 0.055 * face.gaze, y + 0.02)
            pen.ellipse(pupil, (r * 0.135, r * 0.185 * size * face.eyes), tilt, look.eyes)
            pen.ellipse(pupil, (r * 0.075, r * 0.11 * size * face.eyes), tilt, (24, 22, 30))
            pen.disc(at(x + 0.055 * face.gaze + 0.05, y - 0.07 * face.eyes), r * 0.042 * size, (255, 255, 255))
        lid = [at(x + 0.2 * u, y + (1 - u * u) * (0.10 - 0.34 * face.eyes)) for u in np.linspace(-1, 1, 9)]
        pen.stroke(lid, r * 0.06, (58, 40, 44))
        height = -0.18 - 0.07 * face.brows
        brow = [at(x + 0.19 * u, height - 0.05 * (1 - u * u) + 0.025 * side * u) for u in np.linspace(-1, 1, 7)]
        pen.stroke(brow, r * 0.065, shade(look.hair, 0.6))
    pen.ellipse(at(turn * 1.3, 0.42), (r * 0.055, r * 0.04), tilt, shade(look.skin, 0.82))
    draw_mouth(pen, at, turn, face)

    fringe = [at(0.99 * np.cos(a), -0.05 + 0.95 * np.sin(a)) for a in np.linspace(np.pi * 1.02, np.pi * 1.98, 25)]
    locks = ((0.94, -0.04), (0.82, -0.36), (0.52, -0.36), (0.3, -0.56), (0.0, -0.38), (-0.3, -0.58), (-0.55, -0.38))
    locks += ((-0.82, -0.4), (-0.94, -0.04))
    pen.polygon([*fringe, *(at(x + turn * 0.4, y) for x, y in locks)], look.hair)
    shine = [
        at(0.62 * np.cos(a) + turn * 0.3, -0.1 + 0.72 * np.sin(a)) for a in np.linspace(np.pi * 1.2, np.pi * 1.5, 9)
    ]
    pen.stroke(shine, r * 0.05, blend(look.hair, (255, 255, 255), 0.35))


def draw_mouth(pen: Pen, at: Callable[[float, float], np.ndarray], turn: float, face: Expression) -> None:
    u = np.linspace(-1, 1, 13)
    width, y = 0.25 - 0.05 * face.mouth, 0.66
    curve = -0.10 * face.smile * u**2
    if face.mouth < 0.12:
        pen.stroke([at(turn + width * a, y + c) for a, c in zip(u, curve)], HEAD * 0.055, (150, 60, 62))
        return
    drop = 0.30 * face.mouth * np.sqrt(1 - u**2)
    upper = [at(turn + width * a, y + c) for a, c in zip(u, curve)]
    lower = [at(turn + width * a, y + c + d) for a, c, d in zip(u, curve, drop)]
    pen.polygon([*upper, *reversed(lower)], (140, 40, 52))
    tongue = [at(turn + 0.75 * width * a, y + c + d) for a, c, d in zip(u, curve, drop)]
    rise = [at(turn + 0.75 * width * a, y + c + d * 0.62) for a, c, d in zip(u, curve, drop)]
    pen.polygon([*tongue, *reversed(rise)], (236, 120, 122))


def blend(one: Colour, other: Colour, part: float) -> Colour:
    red, green, blue = (int(a + (b - a) * part) for a, b in zip(one, other))
    return red, green, blue


def draw_body(pen: Pen, look: Look, figure: Figure) -> None:
    for i in (0, 1):
        pen.limb(figure.hips[i], figure.knees[i], 8.5, 7, look.trousers)
        pen.limb(figure.knees[i], figure.ankles[i], 7, 6, look.trousers)
        pen.limb(figure.ankles[i] + (0, -2), figure.ankles[i] + (0, 1), 7.2, 7.2, shade(look.shoes, 0.85))
        pen.limb(figure.ankles[i] + (0, 2), figure.toes[i], 6, 5, look.shoes)
    down = (figure.hips[0] + figure.hips[1]) / 2 - figure.neck
    across = (figure.shoulders[1] - figure.shoulders[0]) / 30
    pen.limb(figure.neck, figure.head, 6, 6, shade(look.skin, 0.88))
    hem = [figure.neck + down * 1.16 + across * x for x in (24, -24)]
    pen.polygon([figure.shoulders[0], figure.shoulders[1], *hem], look.top)
    pen.limb(figure.shoulders[0], figure.shoulders[1], 6, 6, look.top)
    pen.limb(hem[0], hem[1], 3, 3, shade(look.top, 0.86))
    pen.limb(figure.neck + down * 0.18, figure.neck + down * 1.1, 0.7, 0.7, shade(look.top, 0.8))
    for part in (0.42, 0.68, 0.94):
        pen.disc(figure.neck + down * part + across * 4, 1.7, look.shoes)
    for i in (0, 1):
        pen.limb(figure.shoulders[i], figure.elbows[i], 7, 6.4, look.sleeves)
        pen.limb(figure.elbows[i], figure.wrists[i], 6.4, 6, look.sleeves)
        pen.disc(figure.wrists[i], 6, shade(look.sleeves, 0.85))
        palm = figure.fingers[i][[5, 9, 13, 17]].mean(0)
        for tip in (4, 8, 12, 16, 20):
            pen.limb(palm, figure.fingers[i][tip], 2.6, 1.9, look.skin)
        pen.disc(palm, 4.6, look.skin)
    scarf = blend(look.shoes, (255, 255, 255), 0.15)
    pen.limb(figure.neck + across * 3, figure.neck + across * 9 + down * 0.4, 4, 4.5, shade(scarf, 0.88))
    pen.limb(figure.neck - across * 10 + down * 0.03, figure.neck + across * 10 + down * 0.03, 5.5, 5.5, scarf)


def ground(look: Look, scale: float) -> np.ndarray:
    """A sky with a low sun over two hills, (HEIGHT, WIDTH, 3) times `scale`."""
    height, width = round(HEIGHT * scale), round(WIDTH * scale)
    fade = np.linspace(0, 1, height)[:, None, None]
    top, bottom = (np.array(colour, float) for colour in look.sky)
    canvas = np.ascontiguousarray(np.broadcast_to(top + (bottom - top) * fade, (height, width, 3)).astype(np.uint8))
    pen = Pen(canvas, scale)
    pen.disc((126, 52), 17, (255, 226, 150))
    for x, y, size in ((22, 44, 9), (34, 40, 12), (47, 45, 8)):
        pen.ellipse((x, y), (size, size * 0.62), 0, (255, 250, 240))
    pen.ellipse((30, 236), (130, 74), 0, (190, 208, 150))
    pen.ellipse((150, 252), (150, 70), 0, (164, 192, 132))
    pen.polygon([(0, 212), (WIDTH, 206), (WIDTH, HEIGHT), (0, HEIGHT)], (146, 178, 120))
    return canvas


def draw_reference(scale: int = 3) -> np.ndarray:
    """The character that is to dance, standing, (HEIGHT, WIDTH, 3) times `scale`."""
    arms = [(0.42, 0.30), (0.42, 0.30)]
    figure = pose_figure((WIDTH / 2, 151), 0.0, 0.0, arms, (0, 0), Expression(gaze=0.1, smile=1.0, brows=0.3))
    canvas = ground(REFERENCE, scale * 2)
    pen = Pen(canvas, scale * 2)
    pen.ellipse((WIDTH / 2, FLOOR + 1), (36, 6), 0, (122, 154, 102))
    draw_body(pen, REFERENCE, figure)
    draw_head(pen, REFERENCE, figure)
    return cv2.resize(canvas, (WIDTH * scale, HEIGHT * scale), interpolation=cv2.INTER_AREA)


def draw_face(figure: Figure) -> np.ndarray:
    """The dancer's face, (FACE, FACE, 3), cut as the preprocessing does: brows to chin and a little more."""
    side = 1.95 * HEAD
    scale = 2 * FACE / side
    canvas = np.empty((2 * FACE, 2 * FACE, 3), np.uint8)
    canvas[:] = DANCER.sky[0]
    head = figure.head + HEAD * 0.18 * np.array([-np.sin(figure.tilt), np.cos(figure.tilt)])
    pen = Pen(canvas, scale, head - side / 2)
    draw_body(pen, DANCER, figure)
    draw_head(pen, DANCER, figure)
    return cv2.resize(canvas, (FACE, FACE), interpolation=cv2.INTER_AREA)


def tune(seconds: float, rate: int = 48000) -> np.ndarray:
    """(1, samples) float32: sixteen soft plucked notes over a bass, as long as the dance."""
    t = np.arange(round(seconds * rate)) / rate
    step = seconds / 16
    notes = (72, 76, 79, 76, 74, 77, 81, 77, 76, 79, 84, 79, 77, 74, 71, 67)
    bass = (48, 53, 57, 55)
    sound = np.zeros_like(t)

    def pluck(start: float, note: float, length: float, loud: float) -> None:
        u = t - start
        on = (u >= 0) & (u < length * 3)
        u = u[on]
        tone = sum(np.sin(2 * np.pi * 440 * 2 ** ((note - 69) / 12) * k * u) / k**2 for k in (1, 2, 3))
        sound[on] += loud * tone * np.minimum(u / 0.008, 1) * np.exp(-u / length)

    for i, note in enumerate(notes):
        pluck(i * step, note, 0.16, 0.16)
    for i, note in enumerate(bass):
        pluck(i * 4 * step, note, 0.45, 0.22)
    return (sound * np.clip((seconds - t) / 0.15, 0, 1)).astype(np.float32)[None]


def write_sound(path: Path, samples: np.ndarray, rate: int = 48000) -> None:
    with av.open(str(path), "w", format="mp4") as output:
        stream = output.add_stream("aac", rate=rate, layout="mono")
        stream.bit_rate = 64_000
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        output.mux([*stream.encode(frame), *stream.encode(None)])


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    figures = [dance(i / FRAMES) for i in range(FRAMES)]
    with tempfile.TemporaryDirectory() as work:
        pose, sound = Path(work, "pose.mp4"), Path(work, "sound.mp4")
        write_lossless(pose, map(skeleton, figures), FPS)
        write_sound(sound, tune(FRAMES / float(FPS)))
        concatenate([pose], folder / "src_pose.mp4", audio_from=sound)
    write_segment(folder / "src_face.mp4", map(draw_face, figures), FPS)
    Image.fromarray(draw_reference()).save(folder / "src_ref.png", optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "data" / "jobs" / "demo")
