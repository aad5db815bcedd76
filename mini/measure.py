"""Measures what a generated video shows, compared with the drawn truth."""

from collections.abc import Sequence

import numpy as np

from mini.figures import ARMS, LEGS, MOUTH, PUPIL, WHITE, Figure, Look, shade
from mini.group import Group

PARTS = ("hair", "torso", *ARMS, *LEGS)
"""Parts of a character that have their own colour."""
LIMBS = (*ARMS, *LEGS)
MISSED = 0.5
"""Error, in heights of the picture, of a limb that is not found."""
DIFFERENT = 60.0
"""Distance from which two colours count as different."""


def psnr(made: np.ndarray, truth: np.ndarray) -> float:
    """dB, of uint8 pictures of any shape."""
    error = np.square(made.astype(np.float64) - truth).mean()
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


def find_parts(frames: np.ndarray, look: Look) -> np.ndarray:
    """The part of each pixel of (T, H, W, 3), by its colour: (T, H, W) indices into PARTS, -1 for everything else.

    A pixel belongs to whatever has the nearest colour of all that the picture can show.
    """
    others = [look.skin, look.wall, look.floor, WHITE, PUPIL, MOUTH, *(shade(getattr(look, leg), 0.6) for leg in LEGS)]
    colours = np.array([*(getattr(look, part) for part in PARTS), *others], np.float32)
    nearest = np.square(frames[..., None, :].astype(np.float32) - colours).sum(-1).argmin(-1)
    return np.where(nearest < len(PARTS), nearest, -1)


def limb_errors(made: np.ndarray, truth: np.ndarray, look: Look) -> np.ndarray:
    """Distances between the limbs of two videos, found by colour, in heights of the picture.

    The position of a limb is the centre of its pixels. Limbs that the truth hardly shows are left out.
    """
    found, expected = find_parts(made, look), find_parts(truth, look)
    errors = []
    for t in range(len(truth)):
        for limb in LIMBS:
            there = np.argwhere(expected[t] == PARTS.index(limb))
            if len(there) < truth.shape[1] * truth.shape[2] / 400:
                continue
            here = np.argwhere(found[t] == PARTS.index(limb))
            missing = len(here) < len(there) / 5
            errors.append(MISSED if missing else np.hypot(*(here.mean(0) - there.mean(0))) / truth.shape[1])
    return np.array(errors)


def shown(made: np.ndarray, truth: np.ndarray, look: Look) -> dict[str, np.ndarray]:
    """Mean colour of the made video at each part's pixels of the truth."""
    expected = find_parts(truth, look)
    return {part: made[expected == index].mean(0) for index, part in enumerate(PARTS) if (expected == index).any()}


def wears(made: np.ndarray, truth: np.ndarray, look: Look, other: Look) -> bool:
    """Whether the colours are those of `look` rather than of `other`.

    Compares each part that has different colours in the two looks. One part may fail.
    """
    nearer = []
    for part, colour in shown(made, truth, look).items():
        own, others = np.array(getattr(look, part)), np.array(getattr(other, part))
        if np.linalg.norm(own - others) > DIFFERENT:
            nearer.append(np.linalg.norm(colour - own) < np.linalg.norm(colour - others))
    return sum(nearer) >= max(len(nearer) - 1, 1)


def limbs_told_apart(made: np.ndarray, group: Group, frames: Sequence[int]) -> np.ndarray:
    """For each visible knee and elbow of the characters in frames of (T, H, W, 3): whether it has their limb's colour.

    Returns (n,) bool. Theirs, or one like it, must be the nearest of the colours of all characters' and drivers' limbs.
    """
    looks = [look for one in group.scenes for look in (one.character, one.driver)]
    colours = {(index, limb): np.array(getattr(look, limb)) for index, look in enumerate(looks) for limb in LIMBS}
    right = []
    for t in frames:
        frame = made[t]
        for index, one in enumerate(group.scenes):
            shown = group.mask(index, t)
            for limb, joints in zip(LIMBS, (*one.driving.elbows, *one.driving.knees)):
                x, y = np.floor(joints[t] * frame.shape[0] + (frame.shape[1] / 2, 0)).astype(int)
                if not (0 <= x < frame.shape[1] and 0 <= y < frame.shape[0] and shown[y, x]):
                    continue
                colour = frame[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2].mean((0, 1))
                nearest = min(colours.values(), key=lambda one: np.linalg.norm(one - colour))
                right.append(np.linalg.norm(nearest - colours[2 * index, limb]) < DIFFERENT)
    return np.array(right)


def face_region(figure: Figure, t: int, size: tuple[int, int]) -> tuple[slice, slice]:
    """Rows and columns of the face."""
    x0, y0, x1, y1 = figure.face_box(t, size)
    return slice(y0, y1), slice(x0, x1)


def agreement(made: np.ndarray, truth: np.ndarray) -> float:
    """Correlation of two differences between pictures."""
    one, two = (each.astype(np.float64).ravel() for each in (made, truth))
    one, two = one - one.mean(), two - two.mean()
    return float((one @ two) / max(np.sqrt((one @ one) * (two @ two)), 1e-9))


def amplitude(made: np.ndarray, truth: np.ndarray) -> float:
    """How large a change is beside the true one: 1 if they are equal, 0 if they have nothing in common."""
    one, two = (each.astype(np.float64).ravel() for each in (made, truth))
    return float((one @ two) / max(two @ two, 1e-9))


def limb_amplitude(made: np.ndarray, truth: np.ndarray, reference: np.ndarray, look: Look) -> float:
    """How far limbs are from where the reference shows them, beside the truth. Limbs are found by colour."""
    places = [_limbs(frames, look) for frames in (made, truth, reference[None])]
    moved, expected = places[0] - places[2], places[1] - places[2]
    seen = np.isfinite(moved) & np.isfinite(expected)
    return amplitude(moved[seen], expected[seen])


def _limbs(frames: np.ndarray, look: Look) -> np.ndarray:
    """(T, 4, 2) centres of the limbs' pixels; NaN for limbs that a frame hardly shows."""
    found, centres = find_parts(frames, look), np.full((len(frames), len(LIMBS), 2), np.nan)
    for t, parts in enumerate(found):
        for index, limb in enumerate(LIMBS):
            pixels = np.argwhere(parts == PARTS.index(limb))
            if len(pixels) >= parts.size / 800:
                centres[t, index] = pixels.mean(0)
    return centres
