"""From a driving video and a picture to the clips that generation reads, in two passes over the video.

The first pass finds the person's keypoints in every frame. Between the passes gaps are closed, jitter is taken out
and the motion is fitted to the character's build. The second pass draws and cuts, and encodes as it goes.
"""

import logging
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from PIL import Image
from pydantic import BaseModel

from wan_orchestration.errors import BadInput
from wan_orchestration.files import replacing
from wan_orchestration.preprocess.contact_sheet import write_contact_sheet
from wan_orchestration.preprocess.drawing import draw_skeleton
from wan_orchestration.preprocess.estimators.base import Estimator, Frame
from wan_orchestration.preprocess.estimators.choose import open_estimator, open_for_picture
from wan_orchestration.preprocess.faces import face_boxes
from wan_orchestration.preprocess.frames import DrivingVideo, ahead
from wan_orchestration.preprocess.geometry import FACE_SIZE, Box, Fit, canvas_size, crop_face, fit_picture
from wan_orchestration.preprocess.keypoints import Pose
from wan_orchestration.preprocess.masks import box_mask, grow_mask
from wan_orchestration.preprocess.motion import Motion, describe_frames, runs
from wan_orchestration.preprocess.outlines import Outline, open_outline
from wan_orchestration.preprocess.outputs import ClipWriter
from wan_orchestration.preprocess.people import Person, follow_person
from wan_orchestration.preprocess.retarget import Retargeting
from wan_orchestration.preprocess.retarget_published import PublishedRetargeting
from wan_orchestration.preprocess.tracking import Choice, numbered
from wan_orchestration.settings import Mode, PreprocessSettings
from wan_orchestration.video import concatenate, read_image

RESULT = "preprocess.json"
CONTACT_SHEET = "contact_sheet.jpg"
_LONGEST_REFERENCE_SIDE = 4096
_FRAMES_AHEAD = 4

Phase = Literal["keypoints", "clips"]
ReportProgress = Callable[[Phase, int, int], None]
"""Called with the phase, frames done, frames in all."""

_log = logging.getLogger(__name__)


class Notice(BaseModel):
    """Something the user should know, and the frames it concerns, as (first, last)."""

    text: str
    frames: list[tuple[int, int]] = []


class PreprocessResult(BaseModel):
    """What was made and how; also written as `preprocess.json` beside the clips."""

    output: Path
    mode: Mode
    frames: int
    fps: float
    width: int
    height: int
    """Of the pose clip, and in replace mode of the background and mask clips."""
    source_width: int
    source_height: int
    source_fps: float
    source_frames: int
    has_audio: bool
    estimator: str
    person_found: int
    """Frames."""
    face_found: int
    retarget: str
    """The rule that was used; off also where the picture shows no person."""
    masks: str | None
    contact_sheet: Path
    warnings: list[Notice]
    seconds: dict[str, float]
    peak_memory_bytes: int
    settings: PreprocessSettings


def preprocess(
    driving: Path,
    reference: Path,
    output: Path,
    settings: PreprocessSettings,
    *,
    snapshot: Path | None,
    models_root: Path,
    log: Callable[[str], None] = _log.info,
    progress: ReportProgress = lambda phase, done, total: None,
) -> PreprocessResult:
    """Makes `src_pose.mp4`, `src_face.mp4`, `src_ref.png`, for replacement also `src_bg.mp4` and `src_mask.mp4`.

    Args:
        driving: the video of the moving person; keypoints or masks from a file lie beside it.
        reference: the picture of the character.
        output: folder that receives the clips, a contact sheet and `preprocess.json`; appears when whole, and
            replaces an older one.
        snapshot: folder of weights, for `process_checkpoint/`; None: the light estimator, or one from a file.
        models_root: where the light estimator's networks are kept.

    Raises BadInput for what the user can mend.
    """
    started = time.monotonic()
    notices: list[Notice] = []
    video = DrivingVideo(driving, settings)
    picture = read_image(reference)
    if video.broken_off:
        _notice(notices, log, f"{driving.name} is truncated: {video.broken_off}; what is there was used")
    sized_by = video.size if settings.mode == "replace" else (picture.shape[1], picture.shape[0])
    size = canvas_size(*sized_by, settings.resolution_area)
    estimator = open_estimator(settings, driving, video.info.frames, snapshot, models_root, log)
    outline = None
    if settings.mode == "replace":
        outline = open_outline(settings, driving, video, snapshot, models_root, log)
    log(
        f"{len(video)} frames of {driving.name} at {float(video.fps):g} a second, {size[0]}x{size[1]}, "
        f"estimator {estimator.name}" + (f", masks {outline.name}" if outline else "")
    )

    person = follow_person(
        video, estimator, Choice.parse(settings.person), lambda done: progress("keypoints", done, len(video))
    )
    found_at = time.monotonic()
    motion = person.motion
    face_seen = motion.found("face")
    motion.fill_gaps(round(settings.max_gap * video.fps))
    if estimator.smooth:
        motion.smooth(estimator.smooth * float(video.fps))
    _tell_about_person(person, notices, log)
    boxes, faceless = face_boxes(motion)
    faceless |= ~face_seen
    _tell_about_faces(boxes, faceless, notices, log)
    retarget, place = "off", _placed_off(video.size, size)
    if settings.mode == "animate" and settings.retarget != "off":
        try:
            pictured = open_for_picture(estimator, settings, snapshot, models_root, log)
            retarget, place = _retargeting(settings, motion, picture, size, pictured, float(video.fps))
        except BadInput as error:
            _notice(notices, log, f"retargeting is off: {error}")

    with replacing(output) as part:
        part.mkdir()
        _write_reference(part / "src_ref.png", picture)
        _write_clips(part, video, motion, size, place, boxes, outline, settings, notices, log, progress)
        has_audio = video.info.has_audio and _add_sound(part / "src_pose.mp4", driving, settings.start, notices, log)
        write_contact_sheet(part / CONTACT_SHEET, person.samples, motion, float(video.fps))
        ended = time.monotonic()
        result = PreprocessResult(
            output=output,
            mode=settings.mode,
            frames=len(video),
            fps=float(video.fps),
            width=size[0],
            height=size[1],
            source_width=video.info.width,
            source_height=video.info.height,
            source_fps=float(video.info.fps),
            source_frames=video.info.frames,
            has_audio=has_audio,
            estimator=estimator.name,
            person_found=int(person.found.sum()),
            face_found=int((~faceless).sum()),
            retarget=retarget,
            masks=outline.name if outline else None,
            contact_sheet=output / CONTACT_SHEET,
            warnings=notices,
            seconds={"keypoints": found_at - started, "clips": ended - found_at, "total": ended - started},
            peak_memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            settings=settings,
        )
        (part / RESULT).write_text(result.model_dump_json(indent=1))
    return result


Place = Callable[[Pose, int], Pose]
"""A pose of the driving video and its frame -> the pose on the canvas."""


def _placed_off(source: tuple[int, int], size: tuple[int, int]) -> Place:
    fit = Fit.into(source, size)
    return lambda pose, index: pose.moved(fit.scale(source), (fit.left, fit.top), size)


def _retargeting(
    settings: PreprocessSettings,
    motion: Motion,
    picture: np.ndarray,
    size: tuple[int, int],
    estimator: Estimator,
    fps: float,
) -> tuple[str, Place]:
    """BadInput: the picture shows no person, or not enough of them."""
    frame = Frame(0, 0.0, fit_picture(picture, size))
    people = numbered(estimator.detect([frame])[0])
    pose = estimator.estimate([frame], people[:1])[0] if people else None
    if pose is None:
        raise BadInput("no person was found in the reference picture")
    if settings.retarget == "published":
        first = motion[int(np.flatnonzero(motion.found("body"))[0])]
        return "published", PublishedRetargeting(first, pose)
    fitted = Retargeting.fit(motion, pose, fps)
    if fitted is None:
        raise BadInput("the reference picture and the driving video show no limb in common")
    return "robust", lambda pose, index: fitted(pose)


def _write_reference(path: Path, picture: np.ndarray) -> None:
    shrink = _LONGEST_REFERENCE_SIDE / max(picture.shape[:2])
    if shrink < 1:
        sides = round(picture.shape[1] * shrink), round(picture.shape[0] * shrink)
        picture = cv2.resize(picture, (max(sides[0], 1), max(sides[1], 1)), interpolation=cv2.INTER_AREA)
    Image.fromarray(picture).save(path, "PNG", compress_level=3)


def _write_clips(
    folder: Path,
    video: DrivingVideo,
    motion: Motion,
    size: tuple[int, int],
    place: Place,
    boxes: list[Box] | None,
    outline: Outline | None,
    settings: PreprocessSettings,
    notices: list[Notice],
    log: Callable[[str], None],
    progress: ReportProgress,
) -> None:
    canvas = np.zeros((size[1], size[0], 3), np.uint8)
    no_face = np.zeros((FACE_SIZE, FACE_SIZE, 3), np.uint8)
    stood_in: list[int] = []
    with ExitStack() as clips:
        poses = clips.enter_context(ClipWriter(folder / "src_pose.mp4", video.fps, "rgb"))
        faces = clips.enter_context(ClipWriter(folder / "src_face.mp4", video.fps, "yuv444"))
        if outline is not None:
            backgrounds = clips.enter_context(ClipWriter(folder / "src_bg.mp4", video.fps, "yuv444"))
            masks = clips.enter_context(ClipWriter(folder / "src_mask.mp4", video.fps, "gray"))
        for index, frame in enumerate(_second_pass(video)):
            pose = place(motion[index], index)
            poses.write(draw_skeleton(canvas.copy(), pose))
            faces.write(crop_face(frame.pixels, boxes[index]) if boxes else no_face)
            if outline is not None:
                picture = fit_picture(frame.pixels, size)
                mask = outline(index, frame, picture, pose)
                if not mask.any() and pose.has("body"):
                    mask = _instead_of_empty(index, frame, pose, outline, settings)
                    stood_in.append(index)
                grid = settings.mask_columns, settings.mask_rows
                mask = grow_mask(mask, settings.mask_iterations, settings.mask_kernel, grid)
                backgrounds.write(picture * (1 - mask)[..., None])
                masks.write(mask * 255)
            progress("clips", index + 1, len(video))
    if stood_in:
        _notice(notices, log, "the outline was empty and the person's box was taken", stood_in)


def _second_pass(video: DrivingVideo) -> Iterator[Frame]:
    return ahead(video, _FRAMES_AHEAD)


def _instead_of_empty(
    index: int, frame: Frame, pose: Pose, outline: Outline, settings: PreprocessSettings
) -> np.ndarray:
    if settings.empty_mask == "box":
        return box_mask(pose)
    raise BadInput(
        f"the {outline.name} mask of frame {index} ({frame.time:.2f} s of the driving video) is empty; choose the "
        "person, other masks (sam2, light, file), or empty_mask: box to take the box around the person"
    )


def _add_sound(clip: Path, driving: Path, start: float, notices: list[Notice], log: Callable[[str], None]) -> bool:
    """Puts the driving video's sound into the pose clip, from which generation takes it."""
    silent = clip.with_name("silent.mp4")
    clip.rename(silent)
    try:
        concatenate([silent], clip, audio_from=driving, audio_start=start)
    except (BadInput, OSError) as error:
        silent.rename(clip)
        _notice(notices, log, f"the sound could not be taken over: {error}")
        return False
    silent.unlink()
    return True


def _tell_about_person(person: Person, notices: list[Notice], log: Callable[[str], None]) -> None:
    drawn = person.motion.found("body")
    bridged, empty = np.flatnonzero(~person.found & drawn), np.flatnonzero(~drawn)
    if len(bridged):
        _notice(notices, log, "the person was not found; the skeleton bridges the gap", bridged)
    if len(empty):
        _notice(notices, log, "the person was not found for longer than max_gap; no skeleton is drawn", empty)
    if person.several:
        _notice(notices, log, "several people are seen; the contact sheet numbers them", person.several)
    if person.taken_up_again:
        _notice(notices, log, "lost and taken up again elsewhere, perhaps another person", person.taken_up_again)


def _tell_about_faces(
    boxes: list[Box] | None, faceless: np.ndarray, notices: list[Notice], log: Callable[[str], None]
) -> None:
    if boxes is None:
        _notice(notices, log, "no face was found in any frame; the face clip is black")
    elif faceless.any():
        text = "no face was found; its place is taken from the frames around"
        _notice(notices, log, text, np.flatnonzero(faceless))


def _notice(
    notices: list[Notice], log: Callable[[str], None], text: str, frames: list[int] | np.ndarray | None = None
) -> None:
    if frames is None:
        notices.append(Notice(text=text))
        log(text)
        return
    flags = np.zeros(max(frames) + 1, bool)
    flags[list(frames)] = True
    notices.append(Notice(text=text, frames=[(start, end - 1) for start, end in runs(flags)]))
    log(f"{text}: frames {describe_frames(frames)}")
