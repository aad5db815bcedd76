"""Makes the clips of Wan-Animate-2: the driving video and the picture, each fitted into frames of its own proportions.

Frames are chosen and fitted as published. A person is only looked for so that checks can compare the poses, and so
that somebody can look at the result before generation.
"""

import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

from wan_orchestration import host_memory
from wan_orchestration.errors import BadInput
from wan_orchestration.families.animate_2.family import CLIPS, FPS
from wan_orchestration.files import replacing
from wan_orchestration.jobs.clips import JOINTS, OVERLAY, TIMELINE, Canvas
from wan_orchestration.preprocess.clip_writer import ClipWriter
from wan_orchestration.preprocess.contact_sheet import write_contact_sheet
from wan_orchestration.preprocess.estimators.base import Detection, Estimator, Frame
from wan_orchestration.preprocess.estimators.choose import open_estimator
from wan_orchestration.preprocess.follow import FollowedPerson, follow_people
from wan_orchestration.preprocess.frames import DrivingVideo, end_of, nearest_frames, prefetched
from wan_orchestration.preprocess.geometry import Letterbox, canvas_size, letterbox
from wan_orchestration.preprocess.keypoints import Pose
from wan_orchestration.preprocess.look import Overlay, TimelinePictures, write_look
from wan_orchestration.preprocess.make_clips import add_sound
from wan_orchestration.preprocess.networks import Networks
from wan_orchestration.preprocess.notices import Notices
from wan_orchestration.preprocess.pipeline import CONTACT_SHEET, RESULT, ReportProgress
from wan_orchestration.preprocess.tracking import Choice
from wan_orchestration.protocol.messages import CharacterRequest, PreprocessResult
from wan_orchestration.settings.preprocess import PreprocessSettings
from wan_orchestration.video.info import VideoInfo
from wan_orchestration.video.sound import find_sound
from wan_orchestration.video.stills import read_image

_FRAMES_AHEAD = 4

_log = logging.getLogger(__name__)


def make(
    driving: Path,
    reference: Path,
    output: Path,
    settings: PreprocessSettings,
    *,
    snapshot: Path | None,
    models_root: Path,
    others: Sequence[CharacterRequest] = (),
    networks: Networks | None = None,
    log: Callable[[str], None] = _log.info,
    progress: ReportProgress = lambda phase, done, total: None,
) -> PreprocessResult:
    """Makes `src_driving.mp4`, `src_ref.png` and `canvas.json`. The arguments are those of `preprocess.pipeline`.

    BadInput: anything that the user can fix.
    """
    host_memory.reset_peak()
    started = time.monotonic()
    assert not others, "there is one character"
    notices = Notices(log)
    video, sound = DrivingVideo(driving, settings, choose_frames, least=1), find_sound(driving)
    picture = read_image(reference)
    notices.about_source(video, sound)
    size = canvas_size(*video.size, settings.resolution_area)
    canvas = canvas_of(picture, settings.resolution_area)
    estimator = _open_estimator(settings, driving, video, snapshot, models_root, log, networks or Networks(), notices)
    log(
        f"{len(video)} frames of {driving.name} at {float(video.fps):g} a second, {size[0]}x{size[1]}, the picture in "
        f"{canvas.width}x{canvas.height}, estimator {estimator.name}"
    )
    person = _find_person(video, estimator, notices, lambda done: progress("keypoints", done, len(video)))
    found_after = time.monotonic() - started
    with replacing(output) as part:
        part.mkdir()
        Image.fromarray(letterbox(picture, (canvas.width, canvas.height))).save(part / CLIPS["src_ref"], "PNG")
        (part / CLIPS["canvas"]).write_text(json.dumps(asdict(canvas), indent=1))
        joints = _write_driving(part, video, person, size, lambda done: progress("clips", done, len(video)))
        if estimator.name != _Nobody.name:
            np.savez_compressed(part / JOINTS, body=joints)
        sound_start = video.info.start + Fraction(settings.start).limit_denominator(48000)
        has_audio = add_sound(part / CLIPS["src_driving"], sound, sound_start, notices)
        write_contact_sheet(part / CONTACT_SHEET, person.samples, person.motion, float(video.fps))
        write_look(part, video, person.people, settings, notices.all)
        total = time.monotonic() - started
        result = PreprocessResult(
            output=output,
            mode="animate",
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
            face_found=None,
            retarget="off",
            masks=None,
            contact_sheet=output / CONTACT_SHEET,
            warnings=notices.all,
            seconds={"keypoints": found_after, "clips": total - found_after, "total": total},
            peak_memory_bytes=host_memory.peak(),
            settings=settings,
        )
        (part / RESULT).write_text(result.model_dump_json(indent=1))
    return result


def canvas_of(picture: np.ndarray, area: int) -> Canvas:
    """The generated frames for a picture (H, W, 3), of about `area` px². BadInput: a side would be 0."""
    height, width = picture.shape[:2]
    size = canvas_size(width, height, area)
    fit = Letterbox.into((width, height), size)
    return Canvas(area, size[1], size[0], fit.top, fit.left, fit.inner[1], fit.inner[0])


def choose_frames(times: Sequence[float], info: VideoInfo, settings: PreprocessSettings) -> tuple[Fraction, list[int]]:
    """The frames that the published code takes at 24 a second, and that rate.

    Frame i of the clip is frame i / 24 * fps of the video, rounded half to even. The published code counts frames. If
    the video's frames are not evenly spaced in time, those nearest in time are taken instead.
    """
    fps = Fraction(settings.fps or FPS).limit_denominator(1001)
    start, rate, wanted = settings.start, float(info.fps), float(fps)
    seconds = info.frames / rate
    if any(abs(moment - i / rate) > 0.25 / rate for i, moment in enumerate(times)) or info.duration > seconds + 0.5:
        return fps, nearest_frames(times, info.fps, fps, start, end_of(info, settings), settings.max_frames)
    if start or settings.end is not None:
        end = seconds if settings.end is None else min(settings.end, seconds)
        count = math.floor((end - start) * wanted + 1e-6)
    else:
        count = int(seconds * wanted)
    if settings.max_frames is not None:
        count = min(count, settings.max_frames)
    return fps, [min(round(start * rate + i / wanted * rate), info.frames - 1) for i in range(count)]


class _Nobody:
    """Stands for an estimator that could not be opened."""

    name = "none"
    batch = 16
    smooth = 0.0

    def detect(self, frames: Sequence[Frame]) -> list[list[Detection]]:
        return [[] for _ in frames]

    def estimate(self, frames: Sequence[Frame], people: Sequence[Detection]) -> list[Pose]:
        return []


def _open_estimator(
    settings: PreprocessSettings,
    driving: Path,
    video: DrivingVideo,
    snapshot: Path | None,
    models_root: Path,
    log: Callable[[str], None],
    networks: Networks,
    notices: Notices,
) -> Estimator:
    """A keypoint file or the light estimator, unless the settings name another. BadInput: the named one is unusable."""
    weights = snapshot if settings.estimator == "vitpose" else None
    try:
        return open_estimator(settings, driving, video.info.frames, weights, models_root, log, networks)
    except BadInput as error:
        if settings.estimator != "auto":
            raise
        notices.add(f"the person cannot be found, so the pose cannot be checked: {error}")
        return _Nobody()


def _find_person(
    video: DrivingVideo, estimator: Estimator, notices: Notices, progress: Callable[[int], None]
) -> FollowedPerson:
    (person,) = follow_people(video, estimator, [Choice.parse("largest")], progress, required=False)
    if estimator.smooth:
        person.motion.smooth(estimator.smooth * float(video.fps))
    if estimator.name != _Nobody.name:
        if not person.found.all():
            notices.add("no person was found; the pose cannot be checked", np.flatnonzero(~person.found))
        if person.crowded:
            notices.add("several people are visible, and the model sees all of them", person.crowded)
        notices.about_jumps(person.motion)
    return person


def _write_driving(
    folder: Path, video: DrivingVideo, person: FollowedPerson, size: tuple[int, int], progress: Callable[[int], None]
) -> np.ndarray:
    """Writes `src_driving.mp4`, and for looking at it `overlay.mp4` and `timeline.jpg`. Returns the person's joints."""
    joints = np.zeros((len(video), 20, 3), np.float32)
    fit, timeline = Letterbox.into(video.size, size), TimelinePictures(video)
    with ExitStack() as clips:
        frames = clips.enter_context(ClipWriter(folder / CLIPS["src_driving"], video.fps, "rgb"))
        overlay = Overlay(clips.enter_context(ClipWriter(folder / OVERLAY, video.fps, "small")), person, size)
        for index, frame in enumerate(prefetched(video, _FRAMES_AHEAD)):
            frames.write(letterbox(frame.pixels, size))
            joints[index] = person.motion[index].moved(fit.scale(video.size), (fit.left, fit.top), size).body
            overlay.write(index, frame, None)
            timeline.add(frame)
            progress(index + 1)
    timeline.write(folder / TIMELINE)
    return joints
