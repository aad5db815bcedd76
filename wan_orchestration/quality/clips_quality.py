"""Measures of clips: frames with a skeleton, a face and a mask, and the largest jump of the skeleton.

In clips without drawn skeletons, the joints in the driving video are measured.
"""

from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
from pydantic import BaseModel, ConfigDict

from wan_orchestration.files import replacing
from wan_orchestration.jobs.clips import CONFIDENT, JOINTS, MEASURES, Clips
from wan_orchestration.settings.checks import BlockingCheck, CheckSettings
from wan_orchestration.video.reader import iter_frames

DRAWN = 24
"""A pixel of the pose clip at least this bright is part of the skeleton. Encoded black may be brighter than 0."""
FACE_DEVIATION = 4.0
"""A face frame whose values have a smaller standard deviation (of 255) shows no face."""
MASKED = 127
"""A brighter pixel of the mask clip belongs to the mask."""


class ClipsQuality(BaseModel):
    """Shares are of the frames, in 0..1. Kept as `measures.json` beside the clips."""

    model_config = ConfigDict(frozen=True)

    stamps: dict[str, tuple[int, int]]
    """Size in bytes and time of change in ns of each measured file, by its name."""
    frames: dict[str, int]
    """Number of frames, by the name of the clip."""
    fps: float
    width: int
    height: int
    """Of the generated frames."""
    skeleton: float | None
    """Share with a skeleton, or else with a person; None if nobody was looked for."""
    face: float | None
    """Share with a face; None without a face clip."""
    largest_jump: float | None
    """Of the skeleton's centre from one frame to the next, as a fraction of the frame's height. None as `skeleton`."""
    jump_frame: int | None
    empty_masks: float | None
    """Share with an empty mask; None in animate mode."""
    confidence: float | None
    """Mean confidence of the found joints; None without `src_pose.npz`."""
    drawn: bool = True
    """Whether a clip shows the motion as skeletons."""
    worst: dict[str, int] = {}
    """With several characters, the number of the one whose measure it is, by the measure's name."""

    def whose(self, measure: str) -> str:
        """Words that name the character of a measure, to be added to a noun; empty if there is only one character."""
        return f" of character {self.worst[measure]}" if measure in self.worst else ""

    @classmethod
    def read(cls, folder: Path) -> "ClipsQuality | None":
        """The measures of the clips in a folder, without decoding them. None: they were not measured, or replaced."""
        try:
            measured = cls.model_validate_json((folder / MEASURES).read_bytes())
            return measured if measured.stamps == _stamps(folder, measured.stamps) else None
        except (OSError, ValueError):
            return None


def quality_of(clips: Clips) -> ClipsQuality:
    """The measures of clips. Measures them if that was not done before. BadInput: a clip cannot be decoded."""
    known = ClipsQuality.read(clips.folder)
    if known is not None and known.frames.keys() == {info.path.name for info in clips.videos.values()}:
        return known
    measured = measure_clips(clips)
    with replacing(clips.folder / MEASURES) as part:
        part.write_text(measured.model_dump_json(indent=1))
    return measured


def measure_clips(clips: Clips) -> ClipsQuality:
    """Measure clips in one pass over each. With several characters, each measure is that of the worst.

    Raises:
        BadInput: a clip cannot be decoded.
    """
    each = [_measure(one) for one in (clips, *clips.characters)]
    if len(each) == 1:
        return each[0]
    jumpy = max(each, key=lambda one: one.largest_jump or 0.0)
    worst = {
        "skeleton": min(each, key=lambda one: _or_all(one.skeleton)),
        "face": min(each, key=lambda one: _or_all(one.face)),
        "confidence": min(each, key=lambda one: _or_all(one.confidence)),
        "largest_jump": jumpy,
        "empty_masks": max(each, key=lambda one: one.empty_masks or 0.0),
    }
    stamps = {
        f"{one.folder.name}/{name}": stamp
        for one, measured in zip(clips.characters, each[1:])
        for name, stamp in measured.stamps.items()
    }
    return each[0].model_copy(
        update={name: getattr(one, name) for name, one in worst.items()}
        | {
            "stamps": each[0].stamps | stamps,
            "jump_frame": jumpy.jump_frame,
            "worst": {name: each.index(one) + 1 for name, one in worst.items()},
        }
    )


def _or_all(share: float | None) -> float:
    return 1.0 if share is None else share


def _measure(clips: Clips) -> ClipsQuality:
    files = [info.path.name for info in clips.videos.values()]
    joints = clips.folder / JOINTS
    stamps = _stamps(clips.folder, [*files, JOINTS] if joints.is_file() else files)
    shown, steps = (
        _of_drawing(clips)
        if clips.skeleton
        else _of_joints(joints, clips.driving.height)
        if joints.is_file()
        else ([], [])
    )
    faces = [frame.std() >= FACE_DEVIATION for frame in iter_frames(clips.face.path)] if clips.face else None
    masks = [frame.max() > MASKED for frame in iter_frames(clips.mask.path)] if clips.mask else None
    return ClipsQuality(
        stamps=stamps,
        frames={info.path.name: info.frames for info in clips.videos.values()},
        fps=float(clips.driving.fps),
        width=clips.width,
        height=clips.height,
        skeleton=round(float(np.mean(shown)), 4) if shown else None,
        face=None if faces is None else round(float(np.mean(faces)), 4),
        largest_jump=round(max(steps, default=0.0), 4) if shown else None,
        jump_frame=int(np.argmax(steps)) + 1 if steps and max(steps) > 0 else None,
        empty_masks=None if masks is None else 1 - float(np.mean(masks)),
        confidence=_confidence(joints),
        drawn=clips.skeleton is not None,
    )


def _of_drawing(clips: Clips) -> tuple[list[bool], list[float]]:
    """Whether each frame has a skeleton, and how far its centre moves before each frame after the first."""
    centres = [_centre(frame) for frame in iter_frames(clips.driving.path)]
    steps = [
        0.0 if one is None or other is None else float(np.linalg.norm(other - one)) / clips.driving.height
        for one, other in pairwise(centres)
    ]
    return [centre is not None for centre in centres], steps


def _of_joints(file: Path, height: int) -> tuple[list[bool], list[float]]:
    """As `_of_drawing`. A step is the median of the joints that both frames show."""
    body = np.load(file)["body"]
    seen = body[..., 2] >= CONFIDENT
    moves = np.linalg.norm(np.diff(body[..., :2], axis=0), axis=-1) / height
    both = seen[1:] & seen[:-1]
    steps = [float(np.median(move[joints])) if joints.any() else 0.0 for move, joints in zip(moves, both, strict=True)]
    return seen.any(axis=1).tolist(), steps


def failed_checks(measured: ClipsQuality, limits: CheckSettings) -> dict[BlockingCheck, str]:
    """What is wrong with the clips, in words, by the name of the check that may block. Empty: nothing."""
    found: dict[BlockingCheck, str] = {}
    if measured.skeleton is not None and measured.skeleton < limits.skeleton:
        shows = f"src_pose.mp4{measured.whose('skeleton')} shows a skeleton"
        if not measured.drawn:
            shows = "a person was found in the driving video"
        found["skeleton"] = (
            f"{shows} in {_percent(measured.skeleton)} of the frames, expected {_percent(limits.skeleton)}"
        )
    if measured.face is not None and measured.face < limits.face:
        found["face"] = (
            f"src_face.mp4{measured.whose('face')} shows a face in {_percent(measured.face)} of the frames, "
            f"expected {_percent(limits.face)}"
        )
    if measured.empty_masks is not None and measured.empty_masks > limits.empty_masks:
        found["mask"] = (
            f"src_mask.mp4{measured.whose('empty_masks')} is empty in {_percent(measured.empty_masks)} of the frames, "
            f"expected {_percent(limits.empty_masks)} at most"
        )
    if measured.largest_jump is not None and measured.largest_jump > limits.jump:
        moving = f"the skeleton in src_pose.mp4{measured.whose('largest_jump')} moves"
        if not measured.drawn:
            moving = "the person in the driving video moves"
        found["no_jumps"] = (
            f"{moving} by {measured.largest_jump:.3g} of the frame's height before frame {measured.jump_frame}, "
            f"expected {limits.jump:g} at most"
        )
    return found


def why_blocked(measured: ClipsQuality, limits: CheckSettings, ready_clips: bool) -> str | None:
    """In one line, why clips may not be used and what to change; None if no check in `limits.block` fails.

    `ready_clips`: whether the user gave the clips, so that no setting of preprocessing changes them.
    """
    found = {name: text for name, text in failed_checks(measured, limits).items() if name in limits.block}
    if not found:
        return None
    advice = "choose another part of the video (preprocess.start, end)"
    if measured.drawn:
        advice += " or another person (preprocess.person)"
    if ready_clips:
        advice = "give other clips"
    elif "mask" in found:
        advice += ", or another mask (preprocess.masks, mask_hints)"
    allow = f"do not let {' and '.join(found)} block (checks.block, WAN_CHECK_BLOCK)"
    return f"{'; '.join(found.values())}: {advice}, or {allow}"


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _stamps(folder: Path, names: Iterable[str]) -> dict[str, tuple[int, int]]:
    facts = {name: (folder / name).stat() for name in names}
    return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in facts.items()}


def drawn_pixels(frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """y and x of the pixels that show the skeleton in a pose frame (H, W, 3) uint8."""
    # Several times faster than frame.max(axis=2).
    red, green, blue = cv2.split(frame)
    y, x = np.nonzero(cv2.max(cv2.max(red, green), blue) >= DRAWN)
    return y, x


def _centre(frame: np.ndarray) -> np.ndarray | None:
    y, x = drawn_pixels(frame)
    return np.array([x.mean(), y.mean()]) if len(x) else None


def _confidence(joints: Path) -> float | None:
    if not joints.is_file():
        return None
    body = np.load(joints)["body"]
    drawn = body[..., 2] > 0
    return round(float(body[..., 2][drawn].mean()), 4) if drawn.any() else 0.0
