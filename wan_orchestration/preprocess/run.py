"""From a driving video and a picture to the clips that generation reads, in two passes over the video.

The first pass finds the person's keypoints in every frame. Between the passes gaps are closed, jitter is taken out
and the motion is fitted to the character's build. The second pass draws and cuts, and encodes as it goes.
"""

import logging
import resource
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Literal

import numpy as np

from wan_orchestration.errors import BadInput
from wan_orchestration.files import replacing
from wan_orchestration.preprocess.clips import Place, add_sound, write_clips, write_reference
from wan_orchestration.preprocess.contact_sheet import write_contact_sheet
from wan_orchestration.preprocess.estimators.base import Estimator, Frame
from wan_orchestration.preprocess.estimators.choose import open_estimator, open_for_picture
from wan_orchestration.preprocess.estimators.keypoint_file import of_picture
from wan_orchestration.preprocess.faces import face_boxes
from wan_orchestration.preprocess.frames import DrivingVideo
from wan_orchestration.preprocess.geometry import Fit, canvas_size, fit_picture
from wan_orchestration.preprocess.keypoints import Pose
from wan_orchestration.preprocess.motion import Motion
from wan_orchestration.preprocess.notices import Notices
from wan_orchestration.preprocess.outlines import open_outline
from wan_orchestration.preprocess.people import follow_person
from wan_orchestration.preprocess.retarget import Retargeting
from wan_orchestration.preprocess.retarget_published import PublishedRetargeting
from wan_orchestration.preprocess.tracking import Choice, numbered
from wan_orchestration.protocol.messages import PreprocessResult
from wan_orchestration.settings.preprocess import PreprocessSettings
from wan_orchestration.video.sound import find_sound
from wan_orchestration.video.stills import read_image

RESULT = "preprocess.json"
CONTACT_SHEET = "contact_sheet.jpg"

Phase = Literal["keypoints", "clips"]
ReportProgress = Callable[[Phase, int, int], None]
"""Called with the phase, frames done, frames in all."""

_log = logging.getLogger(__name__)


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
        reference: the picture of the character; its keypoints from a file lie beside it.
        output: folder that receives the clips, a contact sheet and `preprocess.json`; appears when whole, and
            replaces an older one.
        snapshot: folder of weights, for `process_checkpoint/`; None: the light estimator, or one from a file.
        models_root: where the light estimator's networks are kept.

    Raises BadInput for what the user can mend.
    """
    started = time.monotonic()
    notices = Notices(log)
    video = DrivingVideo(driving, settings)
    picture = read_image(reference)
    if video.broken_off:
        notices.add(f"{driving.name} is truncated: {video.broken_off}; what is there was used")
    for notice in video.info.notices:
        notices.add(f"{driving.name}: {notice}")
    sound = find_sound(driving)
    for notice in sound.notices:
        notices.add(notice)
    sized_by = video.size if settings.mode == "replace" else (picture.shape[1], picture.shape[0])
    size = canvas_size(*sized_by, settings.resolution_area)
    estimator = open_estimator(settings, driving, video.info.frames, snapshot, models_root, log)
    retargeted = settings.mode == "animate" and settings.retarget != "off"
    pictured = open_for_picture(estimator, reference) if retargeted else None
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
    notices.about_person(person)
    boxes, faceless = face_boxes(motion)
    faceless |= ~face_seen
    notices.about_faces(boxes, faceless)
    retarget, place = "off", _placed_off(video.size, size)
    if retargeted:
        try:
            pose = _pose_of_picture(picture, size, reference, pictured)
            retarget, place = _retargeting(settings, motion, pose, float(video.fps))
        except BadInput as error:
            notices.add(f"retargeting is off: {error}")

    with replacing(output) as part:
        part.mkdir()
        write_reference(part / "src_ref.png", picture)
        write_clips(
            *(part, video, motion, size, place, boxes, outline, settings, notices),
            lambda done: progress("clips", done, len(video)),
        )
        has_audio = add_sound(
            part / "src_pose.mp4", sound, video.info.start + Fraction(settings.start).limit_denominator(48000), notices
        )
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
            warnings=notices.all,
            seconds={"keypoints": found_at - started, "clips": ended - found_at, "total": ended - started},
            peak_memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            settings=settings,
        )
        (part / RESULT).write_text(result.model_dump_json(indent=1))
    return result


def _placed_off(source: tuple[int, int], size: tuple[int, int]) -> Place:
    fit = Fit.into(source, size)
    return lambda pose, index: pose.moved(fit.scale(source), (fit.left, fit.top), size)


def _pose_of_picture(picture: np.ndarray, size: tuple[int, int], reference: Path, estimator: Estimator | None) -> Pose:
    """The largest person's, on the canvas. BadInput: nobody is found, or there is no file that says who is there."""
    if estimator is None:
        files = " or ".join(path.name for path in of_picture(reference))
        raise BadInput(f"the keypoints say nothing of {reference.name}; {files} beside it would")
    # A file speaks of the picture as it is, and networks see it as generation does.
    frame = Frame(0, 0.0, picture if estimator.name == "file" else fit_picture(picture, size))
    people = numbered(estimator.detect([frame])[0])
    if not people:
        raise BadInput("no person was found in the reference picture")
    return _placed_off(frame.size, size)(estimator.estimate([frame], people[:1])[0], 0)


def _retargeting(settings: PreprocessSettings, motion: Motion, pose: Pose, fps: float) -> tuple[str, Place]:
    """From the video's motion to the picture's pose. BadInput: they have no limb in common."""
    if settings.retarget == "published":
        first = motion[int(np.flatnonzero(motion.found("body"))[0])]
        return "published", PublishedRetargeting(first, pose)
    fitted = Retargeting.fit(motion, pose, fps)
    if fitted is None:
        raise BadInput("the reference picture and the driving video show no limb in common")
    return "robust", lambda pose, index: fitted(pose)
