"""The second pass over the driving video: drawing, cutting and encoding as it goes."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from wan_orchestration.errors import BadInput
from wan_orchestration.jobs.clips import FACE_SIZE, JOINTS
from wan_orchestration.preprocess.drawing import draw_skeleton
from wan_orchestration.preprocess.estimators.base import Frame
from wan_orchestration.preprocess.frames import DrivingVideo, ahead
from wan_orchestration.preprocess.geometry import Box, crop_face, fit_picture
from wan_orchestration.preprocess.keypoints import Pose
from wan_orchestration.preprocess.masks import box_mask, grow_mask
from wan_orchestration.preprocess.motion import Motion
from wan_orchestration.preprocess.notices import Notices
from wan_orchestration.preprocess.outlines import Outline
from wan_orchestration.preprocess.outputs import ClipWriter
from wan_orchestration.settings.preprocess import PreprocessSettings
from wan_orchestration.video.concat import concatenate
from wan_orchestration.video.info import Sound

_LONGEST_REFERENCE_SIDE = 4096
_FRAMES_AHEAD = 4

Place = Callable[[Pose, int], Pose]
"""A pose of the driving video and its frame -> the pose on the canvas."""


def write_reference(path: Path, picture: np.ndarray) -> None:
    """A PNG of the (H, W, 3) picture, made smaller where a side is over 4096 px."""
    shrink = _LONGEST_REFERENCE_SIDE / max(picture.shape[:2])
    if shrink < 1:
        sides = round(picture.shape[1] * shrink), round(picture.shape[0] * shrink)
        picture = cv2.resize(picture, (max(sides[0], 1), max(sides[1], 1)), interpolation=cv2.INTER_AREA)
    Image.fromarray(picture).save(path, "PNG", compress_level=3)


def write_clips(
    folder: Path,
    video: DrivingVideo,
    motion: Motion,
    size: tuple[int, int],
    place: Place,
    boxes: list[Box] | None,
    outline: Outline | None,
    settings: PreprocessSettings,
    notices: Notices,
    progress: Callable[[int], None],
) -> None:
    """Goes through the video and writes `src_pose.mp4`, `src_face.mp4` and, with an outline, background and mask;
    also the joints that were drawn, as `src_pose.npz`.

    `size` is that of the canvas, `place` puts a driving pose on it, `boxes` are the faces' in the driving video.
    """
    canvas = np.zeros((size[1], size[0], 3), np.uint8)
    joints = np.zeros((len(video), 20, 3), np.float32)
    no_face = np.zeros((FACE_SIZE, FACE_SIZE, 3), np.uint8)
    with ExitStack() as clips:
        poses = clips.enter_context(ClipWriter(folder / "src_pose.mp4", video.fps, "rgb"))
        faces = clips.enter_context(ClipWriter(folder / "src_face.mp4", video.fps, "yuv444"))
        replaced = None
        if outline is not None:
            replaced = _Replaced(
                outline,
                settings,
                clips.enter_context(ClipWriter(folder / "src_bg.mp4", video.fps, "yuv444")),
                clips.enter_context(ClipWriter(folder / "src_mask.mp4", video.fps, "gray")),
            )
        for index, frame in enumerate(ahead(video, _FRAMES_AHEAD)):
            pose = place(motion[index], index)
            joints[index] = pose.body
            poses.write(draw_skeleton(canvas.copy(), pose))
            faces.write(crop_face(frame.pixels, boxes[index]) if boxes else no_face)
            if replaced is not None:
                replaced.write(index, frame, pose)
            progress(index + 1)
    np.savez_compressed(folder / JOINTS, body=joints)
    if replaced is not None and replaced.stood_in:
        notices.add("the outline was empty and the person's box was taken", replaced.stood_in)


@dataclass
class _Replaced:
    """The clips of the background and of the person's mask."""

    outline: Outline
    settings: PreprocessSettings
    backgrounds: ClipWriter
    masks: ClipWriter
    stood_in: list[int] = field(default_factory=list)
    """Frames in which the person's box stood in for the outline."""

    def write(self, index: int, frame: Frame, pose: Pose) -> None:
        picture = fit_picture(frame.pixels, pose.size)
        mask = self.outline(index, frame, picture, pose)
        if not mask.any() and pose.has("body"):
            mask = self._box(index, frame, pose)
        grid = self.settings.mask_columns, self.settings.mask_rows
        mask = grow_mask(mask, self.settings.mask_iterations, self.settings.mask_kernel, grid)
        self.backgrounds.write(picture * (1 - mask)[..., None])
        self.masks.write(mask * 255)

    def _box(self, index: int, frame: Frame, pose: Pose) -> np.ndarray:
        if self.settings.empty_mask == "error":
            raise BadInput(
                f"the {self.outline.name} mask of frame {index} ({frame.time:.2f} s of the driving video) is empty; "
                "choose the person, other masks (sam2, light, file), or empty_mask: box to take the person's box"
            )
        self.stood_in.append(index)
        return box_mask(pose)


def add_sound(clip: Path, sound: Sound, start: Fraction, notices: Notices) -> bool:
    """Puts the sound from the moment `start` of its file into the clip; tells whether the clip has sound then."""
    if sound.track is None:
        return False
    silent = clip.with_name("silent.mp4")
    clip.rename(silent)
    lost = concatenate([silent], clip, sound, start)
    silent.unlink()
    if lost:
        notices.add(lost)
    return not lost
