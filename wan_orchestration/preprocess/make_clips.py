"""The second pass over the driving video: draws the skeleton, crops the face, masks the person, encodes the clips."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from wan_orchestration.errors import BadInput
from wan_orchestration.jobs.clips import FACE_SIZE, JOINTS, OVERLAY, TIMELINE
from wan_orchestration.preprocess.apart import OutlineBesideOthers
from wan_orchestration.preprocess.clip_writer import ClipWriter
from wan_orchestration.preprocess.drawing import draw_skeleton
from wan_orchestration.preprocess.estimators.base import Frame
from wan_orchestration.preprocess.follow import FollowedPerson
from wan_orchestration.preprocess.frames import DrivingVideo, prefetched
from wan_orchestration.preprocess.geometry import PixelBox, crop_face, letterbox
from wan_orchestration.preprocess.keypoints import Pose
from wan_orchestration.preprocess.look import Overlay, TimelinePictures
from wan_orchestration.preprocess.mask_hints import MaskHint, MovingHints
from wan_orchestration.preprocess.masks import box_mask, grow_mask
from wan_orchestration.preprocess.notices import Notices
from wan_orchestration.preprocess.outlines import Outline
from wan_orchestration.settings.preprocess import PreprocessSettings
from wan_orchestration.video.concat import concatenate
from wan_orchestration.video.info import Sound

_LONGEST_REFERENCE_SIDE = 4096
_FRAMES_AHEAD = 4

ToCanvas = Callable[[Pose, int], Pose]
"""Moves a pose of the driving video onto the canvas. Arguments: the pose, and its frame number."""


def write_reference(path: Path, picture: np.ndarray) -> None:
    """Writes a PNG of the (H, W, 3) picture, scaled down if a side is over 4096 px."""
    shrink = _LONGEST_REFERENCE_SIDE / max(picture.shape[:2])
    if shrink < 1:
        sides = round(picture.shape[1] * shrink), round(picture.shape[0] * shrink)
        picture = cv2.resize(picture, (max(sides[0], 1), max(sides[1], 1)), interpolation=cv2.INTER_AREA)
    Image.fromarray(picture).save(path, "PNG", compress_level=3)


def write_clips(
    folder: Path,
    video: DrivingVideo,
    person: FollowedPerson,
    size: tuple[int, int],
    to_canvas: ToCanvas,
    boxes: list[PixelBox] | None,
    outline: Outline | None,
    settings: PreprocessSettings,
    notices: Notices,
    progress: Callable[[int], None],
) -> None:
    """Writes `src_pose.mp4`, `src_face.mp4`, `src_pose.npz` (the drawn joints), and with an outline also `src_bg.mp4`
    and `src_mask.mp4`. For looking at them, also `overlay.mp4` and `timeline.jpg`.

    `size` is the canvas's (width, height), `to_canvas` moves poses onto it, `boxes` are the face boxes in the driving
    video (None: no frame has a face). BadInput: an outline is empty and `empty_mask` is error.
    """
    canvas = np.zeros((size[1], size[0], 3), np.uint8)
    joints = np.zeros((len(video), 20, 3), np.float32)
    no_face = np.zeros((FACE_SIZE, FACE_SIZE, 3), np.uint8)
    motion, timeline = person.motion, TimelinePictures(video)
    with ExitStack() as clips:
        poses = clips.enter_context(ClipWriter(folder / "src_pose.mp4", video.fps, "rgb"))
        faces = clips.enter_context(ClipWriter(folder / "src_face.mp4", video.fps, "yuv444"))
        overlay = Overlay(clips.enter_context(ClipWriter(folder / OVERLAY, video.fps, "small")), person, size)
        replacement = None
        if outline is not None:
            replacement = _ReplacementClips(
                outline,
                _moving_hints(video, person, size, settings, notices),
                settings,
                clips.enter_context(ClipWriter(folder / "src_bg.mp4", video.fps, "yuv444")),
                clips.enter_context(ClipWriter(folder / "src_mask.mp4", video.fps, "gray")),
            )
        for index, frame in enumerate(prefetched(video, _FRAMES_AHEAD)):
            pose = to_canvas(motion[index], index)
            joints[index] = pose.body
            poses.write(draw_skeleton(canvas.copy(), pose))
            faces.write(crop_face(frame.pixels, boxes[index]) if boxes else no_face)
            mask = replacement.write(index, frame, pose) if replacement is not None else None
            overlay.write(index, frame, mask)
            timeline.add(frame)
            progress(index + 1)
    timeline.write(folder / TIMELINE)
    np.savez_compressed(folder / JOINTS, body=joints)
    if replacement is not None and replacement.boxed:
        notices.add("the outline was empty; the person's box was used", replacement.boxed)
    if replacement is not None and replacement.empty:
        notices.add("the mask is empty, so nothing is replaced", replacement.empty)


@dataclass
class _ReplacementClips:
    """The background clip and the mask clip."""

    outline: Outline
    hints: MovingHints | None
    settings: PreprocessSettings
    backgrounds: ClipWriter
    masks: ClipWriter
    boxed: list[int] = field(default_factory=list)
    """Frames whose mask is the person's box, because the outline was empty."""
    empty: list[int] = field(default_factory=list)
    """Frames with neither an outline nor a person."""

    def write(self, index: int, frame: Frame, pose: Pose) -> np.ndarray:
        """Returns the mask: (H, W) uint8 of 0 and 1, on the canvas."""
        picture = letterbox(frame.pixels, pose.size)
        hints = self.hints.at(index, pose) if self.hints else None
        mask = self.outline(index, frame, picture, pose, hints)
        if not mask.any() and pose.has("body"):
            mask = self._box(index, frame, pose)
        if not mask.any():
            self.empty.append(index)
        grid = self.settings.mask_columns, self.settings.mask_rows
        mask = grow_mask(mask, self.settings.mask_iterations, self.settings.mask_kernel, grid)
        if isinstance(self.outline, OutlineBesideOthers):
            mask = mask & (1 - self.outline.others(index))
        self.backgrounds.write(picture * (1 - mask)[..., None])
        self.masks.write(mask * 255)
        return mask

    def _box(self, index: int, frame: Frame, pose: Pose) -> np.ndarray:
        if self.settings.empty_mask == "error":
            raise BadInput(
                f"the {self.outline.name} mask of frame {index} ({frame.time:.2f} s of the driving video) is empty; "
                "choose the person, other masks (sam2, light, file), add mask_hints, or use the person's box with "
                "empty_mask: box"
            )
        self.boxed.append(index)
        return box_mask(pose)


def _moving_hints(
    video: DrivingVideo, person: FollowedPerson, size: tuple[int, int], settings: PreprocessSettings, notices: Notices
) -> MovingHints | None:
    """The mask hints whose moments are in the clips; None if there are none."""
    first, last = (video.times[index] for index in (video.indices[0], video.indices[-1]))
    half = float(1 / video.fps / 2)
    hints = []
    for text in settings.mask_hints:
        hint = MaskHint.parse(text)
        if hint.seconds is None or first - half <= hint.seconds <= last + half:
            hints.append(hint)
        else:
            notices.add(f"mask_hints: {text} is not used, because the clips show {first:.2f} to {last:.2f} s")

    def frame_at(seconds: float | None) -> int:
        if seconds is None:
            return person.people.index
        return int(np.abs(np.asarray(video.times)[video.indices] - seconds).argmin())

    return MovingHints(hints, person.motion, size, frame_at) if hints else None


def add_sound(clip: Path, sound: Sound, start: Fraction, notices: Notices) -> bool:
    """Adds the sound to the clip, from `start` seconds on its file's clock. Returns whether the clip has sound."""
    if sound.track is None:
        return False
    silent = clip.with_name("silent.mp4")
    clip.rename(silent)
    problem = concatenate([silent], clip, sound, start)
    silent.unlink()
    if problem:
        notices.add(problem)
    return not problem
