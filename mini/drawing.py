"""Draws figures in flat shapes with smooth edges: whole frames, face crops, backgrounds and silhouettes."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import cv2
import numpy as np

from mini.figures import ARMS, LEGS, MOUTH, PUPIL, WHITE, Colour, Figure, Look, mouth_lines, shade


class Pen:
    """Draws on a canvas that shows the picture from `corner` on. A height of the picture is `scale` px."""

    def __init__(self, canvas: np.ndarray, scale: float, corner: tuple[float, float]) -> None:
        self.canvas, self.scale, self.corner = canvas, scale, np.asarray(corner, float)

    def _fixed(self, points: np.ndarray | Sequence[np.ndarray]) -> np.ndarray:
        return np.round(((np.asarray(points) - self.corner) * self.scale - 0.5) * 16).astype(np.int32)

    def polygon(self, points: np.ndarray | Sequence[np.ndarray], colour: Colour) -> None:
        cv2.fillPoly(self.canvas, [self._fixed(points)], colour, cv2.LINE_AA, 4)

    def disc(self, centre: np.ndarray, radius: float, colour: Colour) -> None:
        x, y = self._fixed([centre])[0].tolist()
        cv2.circle(self.canvas, (x, y), max(round(radius * self.scale * 16), 1), colour, -1, cv2.LINE_AA, 4)

    def ellipse(self, centre: np.ndarray, axes: tuple[float, float], angle: float, colour: Colour) -> None:
        cos, sin = np.cos(angle), np.sin(angle)
        x, y = _CIRCLE * np.array(axes)[:, None]
        self.polygon(centre + np.column_stack([cos * x - sin * y, sin * x + cos * y]), colour)

    def limb(self, points: Sequence[np.ndarray], width: float, colour: Colour) -> None:
        """Bones with round joints. `width` is half their thickness."""
        for start, end in pairwise(points):
            way = (end - start) / max(float(np.hypot(*(end - start))), 1e-6)
            side = np.array([-way[1], way[0]]) * width
            self.polygon([start + side, end + side, end - side, start - side], colour)
        for point in points:
            self.disc(point, width, colour)


_CIRCLE = np.stack([np.cos(np.linspace(0, 2 * np.pi, 25)[:-1]), np.sin(np.linspace(0, 2 * np.pi, 25)[:-1])])


def draw_place(
    look: Look, size: tuple[int, int], scale: float | None = None, corner: tuple[float, float] | None = None,
    horizon: float = 0.8,
) -> np.ndarray:  # fmt: skip
    """The wall and the floor of a look without its character, (H, W, 3) uint8."""
    scale = scale or size[1]
    top = 0.0 if corner is None else corner[1]
    picture = np.empty((size[1], size[0], 3), np.uint8)
    picture[:] = look.wall
    # Blend wall and floor in the row of pixels that their edge crosses.
    share = np.clip((np.arange(size[1]) + 1 + (top - horizon) * scale), 0, 1)[:, None, None]
    return np.round(picture * (1 - share) + np.array(look.floor) * share).astype(np.uint8)


def draw_frame(
    figure: Figure, look: Look, t: int, size: tuple[int, int], place: np.ndarray | None = None
) -> np.ndarray:
    """Frame t, (H, W, 3) uint8, for `size` (width, height) px, in front of `place` or of the look's own place."""
    picture = draw_place(look, size) if place is None else place.copy()
    _draw(Pen(picture, size[1], (-size[0] / size[1] / 2, 0.0)), figure, look, t)
    return picture


def draw_face(figure: Figure, look: Look, t: int, size: tuple[int, int]) -> np.ndarray:
    """The face crop of `draw_frame`'s picture, without drawing the rest."""
    width, height = size
    x0, y0, x1, y1 = figure.face_box(t, size)
    corner = (x0 - width / 2) / height, y0 / height
    picture = draw_place(look, (x1 - x0, y1 - y0), height, corner)
    pen = Pen(picture, height, corner)
    pen.limb([figure.neck[t] + (figure.neck[t] - figure.head[t]) * 0.5, figure.neck[t]], 0.06, look.torso)
    _draw_head(pen, figure, look, t)
    return picture


def silhouette(figure: Figure, look: Look, t: int, size: tuple[int, int]) -> np.ndarray:
    """Where the character is in frame t, (H, W) uint8 of 0 and 1."""
    canvas = np.zeros((size[1], size[0], 3), np.uint8)
    white = replace(look, **dict.fromkeys(("skin", "hair", "torso", *ARMS, *LEGS), WHITE))
    _draw(Pen(canvas, size[1], (-size[0] / size[1] / 2, 0.0)), figure, white, t, face=False)
    return (canvas[..., 0] > 127).astype(np.uint8)


def _draw(pen: Pen, figure: Figure, look: Look, t: int, face: bool = True) -> None:
    z = figure.build.zoom
    for i, leg in enumerate(LEGS):
        colour = getattr(look, leg)
        pen.limb([figure.hips[i][t], figure.knees[i][t], figure.ankles[i][t]], 0.04 * z, colour)
        pen.limb([figure.ankles[i][t] + (0, 0.015 * z), figure.toes[i][t]], 0.03 * z, shade(colour, 0.6))
    neck, across = figure.neck[t], figure.across[t]
    down = (figure.hips[0][t] + figure.hips[1][t]) / 2 - neck
    pen.limb([neck, figure.head[t]], 0.03 * z, shade(look.skin, 0.88))
    hem = [neck + down * 1.12 + across * x * z for x in (0.085, -0.085)]
    pen.polygon([figure.shoulders[0][t], figure.shoulders[1][t], *hem], look.torso)
    pen.limb([figure.shoulders[0][t], figure.shoulders[1][t]], 0.035 * z, look.torso)
    for i, arm in enumerate(ARMS):
        pen.disc(figure.hands[i][t][[4, 8, 12, 16, 20]].mean(0) * 0.6 + figure.wrists[i][t] * 0.4, 0.036 * z, look.skin)
        pen.limb([figure.shoulders[i][t], figure.elbows[i][t], figure.wrists[i][t]], 0.036 * z, getattr(look, arm))
    _draw_head(pen, figure, look, t, face)


def _draw_head(pen: Pen, figure: Figure, look: Look, t: int, face: bool = True) -> None:
    at, act, angle, r = figure.on_head(t), figure.act, figure.angle[t], figure.radius
    turn = 0.22 * act.turn[t]
    if look.style == "buns":
        for side in (-1, 1):
            pen.disc(at(side * 0.8, -0.75), r * 0.4, look.hair)
    pen.ellipse(at(0, -0.05), (r * 1.08, r * 1.05), angle, look.hair)
    if look.style == "long":
        for side in (-1, 1):
            pen.limb([at(side * 0.86, 0.1), at(side * 0.92, 0.95)], r * 0.2, look.hair)
    pen.ellipse(at(turn * 0.3, 0.12), (r * 0.86, r * 0.8), angle, look.skin)
    fringe = [at(0.98 * np.cos(a), -0.05 + 0.95 * np.sin(a)) for a in np.linspace(np.pi * 1.04, np.pi * 1.96, 13)]
    pen.polygon([*fringe, at(0.5 + turn * 0.4, -0.42), at(-0.5 + turn * 0.4, -0.42)], look.hair)
    if not face:
        return
    for side in (-1, 1):
        eye = at(side * 0.36 + turn, 0.05)
        openness = max(act.eyes[t], 0.14)
        pen.ellipse(eye, (r * 0.21, r * 0.25 * openness), angle, WHITE if act.eyes[t] > 0.3 else PUPIL)
        if act.eyes[t] > 0.3:
            pen.ellipse(eye, (r * 0.14, r * 0.2 * openness), angle, PUPIL)
    upper, lower = mouth_lines(act, t)
    pen.polygon([at(turn + x, y) for x, y in [*upper, *lower[::-1]]], MOUTH)
