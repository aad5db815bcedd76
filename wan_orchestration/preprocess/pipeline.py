"""Preprocessing: makes the clips that generation reads from a driving video and a picture.

It passes over the video twice. The first pass finds the person's keypoints in every frame. Then gaps in the motion
are filled, jitter is smoothed, and the motion is fitted to the character's build. The second pass draws the skeleton,
crops faces, masks the person, and encodes the clips.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np

from wan_orchestration import host_memory
from wan_orchestration.errors import BadInput
from wan_orchestration.files import replacing
from wan_orchestration.jobs.clips import character_folder
from wan_orchestration.preprocess.apart import OutlineBesideOthers, write_outline
from wan_orchestration.preprocess.contact_sheet import write_contact_sheet
from wan_orchestration.preprocess.estimators.base import Estimator, Frame
from wan_orchestration.preprocess.estimators.choose import open_estimator, open_picture_estimator
from wan_orchestration.preprocess.estimators.keypoint_file import keypoint_files_of
from wan_orchestration.preprocess.faces import face_boxes
from wan_orchestration.preprocess.follow import FollowedPerson, follow_people
from wan_orchestration.preprocess.frames import DrivingVideo
from wan_orchestration.preprocess.geometry import Letterbox, PixelBox, canvas_size, letterbox
from wan_orchestration.preprocess.keypoints import Pose
from wan_orchestration.preprocess.look import write_look
from wan_orchestration.preprocess.make_clips import ToCanvas, add_sound, moving_hints, write_clips, write_reference
from wan_orchestration.preprocess.motion import Motion
from wan_orchestration.preprocess.networks import Networks
from wan_orchestration.preprocess.notices import Notices
from wan_orchestration.preprocess.outlines import Outline, open_outline
from wan_orchestration.preprocess.retarget import Retargeting
from wan_orchestration.preprocess.retarget_published import PublishedRetargeting
from wan_orchestration.preprocess.tracking import Choice, numbered
from wan_orchestration.protocol.messages import CharacterRequest, PreprocessResult
from wan_orchestration.settings.preprocess import PreprocessSettings
from wan_orchestration.video.info import Sound
from wan_orchestration.video.sound import find_sound
from wan_orchestration.video.stills import read_image

RESULT = "preprocess.json"
CONTACT_SHEET = "contact_sheet.jpg"

Phase = Literal["keypoints", "clips"]
ReportProgress = Callable[[Phase, int, int], None]
"""Called with the phase, the number of frames done, and their total."""

_log = logging.getLogger(__name__)


def preprocess(
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
    """Makes `src_pose.mp4`, `src_face.mp4`, `src_ref.png`, for replacement also `src_bg.mp4` and `src_mask.mp4`.

    Args:
        driving: the video of the moving person. Keypoint and mask files lie beside it.
        reference: the picture of the character. Its keypoint file lies beside it.
        output: folder for the clips, a contact sheet and `preprocess.json`. It appears when complete, and replaces
            an older one.
        snapshot: folder of weights, for `process_checkpoint/`. None: the light estimator, or keypoints from a file.
        models_root: folder in which the light estimator keeps its networks, in `light/`.
        others: further characters; their clips go into `character_2`, `character_3` and so on, in `output`.
        networks: keeps opened networks for the next call. None: they are closed at the end.
        log: writes a line for users.
        progress: called after each frame of a phase.

    BadInput: anything that the user can fix. MemoryError or torch.OutOfMemoryError: the networks do not fit.
    """
    host_memory.reset_peak()
    started = time.monotonic()
    notices, networks = Notices(log), networks or Networks()
    inputs = _open_inputs(driving, reference, settings, snapshot, models_root, notices, log, networks)
    video = inputs.video
    choices = [Choice.parse(one.person) for one in (settings, *(other.settings for other in others))]
    persons = follow_people(video, inputs.estimator, choices, lambda done: progress("keypoints", done, len(video)))
    found_after = time.monotonic() - started
    people = [_Person(persons[0], inputs, settings, notices, Path())]
    for number, (other, person) in enumerate(zip(others, persons[1:], strict=True), 2):
        own_inputs = replace(
            inputs,
            reference=other.reference,
            picture=read_image(other.reference),
            outline=open_outline(other.settings, driving, video, snapshot, models_root, log, networks),
        )
        own_notices = Notices(log, f"character {number}: ")
        people.append(_Person(person, own_inputs, other.settings, own_notices, Path(character_folder(number))))
    with replacing(output) as part:
        part.mkdir()
        steps = _Steps(progress, len(video), len(people) if len(people) == 1 else 2 * len(people))
        with _kept_apart(part, people, steps):
            result, *further = [_make_clips(part, output, person, steps.next()) for person in people]
        result.characters = further
        result.warnings = [notice for made in (result, *further) for notice in made.warnings]
        write_look(part, video, persons[0].people, settings, result.warnings)
        result.seconds |= {"keypoints": found_after, "clips": steps.seconds, "total": time.monotonic() - started}
        result.peak_memory_bytes = host_memory.peak()
        (part / RESULT).write_text(result.model_dump_json(indent=1))
    return result


class _Steps:
    """Passes over the video that make clips, as one progress."""

    def __init__(self, progress: ReportProgress, frames: int, passes: int) -> None:
        self.progress, self.frames, self.passes = progress, frames, passes
        self.started, self.begun = time.monotonic(), 0

    def next(self) -> Callable[[int], None]:
        """Begins the next pass. Returns a function of its number of frames done."""
        before, self.begun = self.begun * self.frames, self.begun + 1
        return lambda done: self.progress("clips", before + done, self.frames * self.passes)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started


class _Person:
    """A followed person with clean motion, and the inputs of the character who takes the person's place."""

    def __init__(
        self, followed: FollowedPerson, inputs: "_Inputs", settings: PreprocessSettings, notices: Notices, folder: Path
    ) -> None:
        self.followed, self.inputs, self.settings, self.notices = followed, inputs, settings, notices
        self.folder = folder
        """Of the clips, in the job's folder of clips."""
        self.boxes, self.faceless = _clean_motion(followed, inputs, settings, notices)
        self.retarget, self.to_canvas = _fit_motion(followed.motion, inputs, settings, notices)

    def pose_at(self, index: int) -> Pose:
        """On the canvas."""
        return self.to_canvas(self.followed.motion[index], index)


@contextmanager
def _kept_apart(part: Path, people: Sequence[_Person], steps: _Steps) -> Iterator[None]:
    """A context in which the outline of each of several people leaves out the others."""
    if len(people) == 1:
        yield
        return
    with TemporaryDirectory(dir=part, prefix=".outlines-") as folder, ExitStack() as readers:
        files = [Path(folder, f"{number}.mp4") for number in range(len(people))]
        for person, file in zip(people, files):
            inputs = person.inputs
            assert inputs.outline is not None  # characters are replaced
            hints = moving_hints(inputs.video, person.followed, inputs.size, person.settings, person.notices)
            write_outline(file, inputs.video, inputs.outline, hints, person.pose_at, steps.next())
        for person, file in zip(people, files):
            inputs, others = person.inputs, [other for other in files if other != file]
            assert inputs.outline is not None
            inputs.outline = OutlineBesideOthers(inputs.outline.name, file, others)
            readers.callback(inputs.outline.close)
        yield


def _make_clips(part: Path, output: Path, person: _Person, progress: Callable[[int], None]) -> PreprocessResult:
    """Writes the clips of one character into a folder in `part`, which will be renamed to `output`."""
    started, inputs, video = time.monotonic(), person.inputs, person.inputs.video
    folder = part / person.folder
    folder.mkdir(exist_ok=True)
    has_audio = _write_outputs(
        folder, person.followed, inputs, person.boxes, person.to_canvas, person.settings, person.notices, progress
    )
    seconds = time.monotonic() - started
    result = PreprocessResult(
        output=output / person.folder,
        mode=person.settings.mode,
        frames=len(video),
        fps=float(video.fps),
        width=inputs.size[0],
        height=inputs.size[1],
        source_width=video.info.width,
        source_height=video.info.height,
        source_fps=float(video.info.fps),
        source_frames=video.info.frames,
        has_audio=has_audio,
        estimator=inputs.estimator.name,
        person_found=int(person.followed.found.sum()),
        face_found=int((~person.faceless).sum()),
        retarget=person.retarget,
        masks=inputs.outline.name if inputs.outline else None,
        contact_sheet=output / person.folder / CONTACT_SHEET,
        warnings=person.notices.all,
        seconds={"clips": seconds, "total": seconds},
        peak_memory_bytes=host_memory.peak(),
        settings=person.settings,
    )
    (folder / RESULT).write_text(result.model_dump_json(indent=1))
    return result


@dataclass
class _Inputs:
    """The opened inputs of one call of `preprocess`."""

    video: DrivingVideo
    sound: Sound
    reference: Path
    picture: np.ndarray
    """(H, W, 3) uint8 RGB: the reference."""
    size: tuple[int, int]
    """Width and height of the canvas, px."""
    estimator: Estimator
    picture_estimator: Estimator | None
    """Finds the keypoints of the reference. None: retargeting is off, or the reference's keypoint file is missing."""
    outline: Outline | None
    """Finds the person's outline, for replacement."""


def _open_inputs(
    driving: Path,
    reference: Path,
    settings: PreprocessSettings,
    snapshot: Path | None,
    models_root: Path,
    notices: Notices,
    log: Callable[[str], None],
    networks: Networks,
) -> _Inputs:
    video = DrivingVideo(driving, settings)
    picture = read_image(reference)
    sound = find_sound(driving)
    notices.about_source(video, sound)
    proportions = video.size if settings.mode == "replace" else (picture.shape[1], picture.shape[0])
    size = canvas_size(*proportions, settings.resolution_area)
    estimator = open_estimator(settings, driving, video.info.frames, snapshot, models_root, log, networks)
    picture_estimator = open_picture_estimator(estimator, reference) if _retargets(settings) else None
    outline = None
    if settings.mode == "replace":
        outline = open_outline(settings, driving, video, snapshot, models_root, log, networks)
    log(
        f"{len(video)} frames of {driving.name} at {float(video.fps):g} a second, {size[0]}x{size[1]}, "
        f"estimator {estimator.name}" + (f", masks {outline.name}" if outline else "")
    )
    return _Inputs(video, sound, reference, picture, size, estimator, picture_estimator, outline)


def _clean_motion(
    person: FollowedPerson, inputs: _Inputs, settings: PreprocessSettings, notices: Notices
) -> tuple[list[PixelBox] | None, np.ndarray]:
    """Fills gaps in the person's motion and smooths it, in place.

    Returns the face boxes and (T,) bool: the frames without a face, as `face_boxes` does.
    """
    motion, fps = person.motion, inputs.video.fps
    face_seen = motion.found("face")
    motion.fill_gaps(round(settings.max_gap * fps))
    if inputs.estimator.smooth:
        motion.smooth(inputs.estimator.smooth * float(fps))
    notices.about_person(person)
    notices.about_jumps(motion)
    boxes, faceless = face_boxes(motion)
    faceless |= ~face_seen
    notices.about_faces(boxes, faceless)
    return boxes, faceless


def _fit_motion(
    motion: Motion, inputs: _Inputs, settings: PreprocessSettings, notices: Notices
) -> tuple[str, ToCanvas]:
    """The name of the retargeting rule that is used, and the function that moves poses onto the canvas by this rule.

    Without retargeting, poses are letterboxed like the frames.
    """
    if _retargets(settings):
        try:
            pose = _reference_pose(inputs)
            return _retargeting(settings, motion, pose, float(inputs.video.fps))
        except BadInput as error:
            notices.add(f"retargeting is off: {error}")
    return "off", _letterboxed(inputs.video.size, inputs.size)


def _write_outputs(
    folder: Path,
    person: FollowedPerson,
    inputs: _Inputs,
    boxes: list[PixelBox] | None,
    to_canvas: ToCanvas,
    settings: PreprocessSettings,
    notices: Notices,
    progress: Callable[[int], None],
) -> bool:
    """Writes the clips with their sound, and the contact sheet. Returns whether there is sound."""
    video = inputs.video
    write_reference(folder / "src_ref.png", inputs.picture)
    write_clips(
        folder,
        video,
        person,
        inputs.size,
        to_canvas,
        boxes,
        inputs.outline,
        settings,
        notices,
        progress=progress,
    )
    sound_start = video.info.start + Fraction(settings.start).limit_denominator(48000)
    has_audio = add_sound(folder / "src_pose.mp4", inputs.sound, sound_start, notices)
    write_contact_sheet(folder / CONTACT_SHEET, person.samples, person.motion, float(video.fps))
    return has_audio


def _retargets(settings: PreprocessSettings) -> bool:
    return settings.mode == "animate" and settings.retarget != "off"


def _letterboxed(source: tuple[int, int], size: tuple[int, int]) -> ToCanvas:
    box = Letterbox.into(source, size)
    return lambda pose, index: pose.moved(box.scale(source), (box.left, box.top), size)


def _reference_pose(inputs: _Inputs) -> Pose:
    """The pose of the largest person in the reference, on the canvas. BadInput: no person, or no keypoint file."""
    estimator = inputs.picture_estimator
    if estimator is None:
        files = " or ".join(path.name for path in keypoint_files_of(inputs.reference))
        raise BadInput(f"the keypoints for {inputs.reference.name} are missing; expected {files} beside it")
    # A keypoint file refers to the original picture. Networks get the letterboxed picture, as generation does.
    picture = inputs.picture if estimator.name == "file" else letterbox(inputs.picture, inputs.size)
    frame = Frame(0, 0.0, picture)
    people = numbered(estimator.detect([frame])[0])
    if not people:
        raise BadInput("no person was found in the reference picture")
    return _letterboxed(frame.size, inputs.size)(estimator.estimate([frame], people[:1])[0], 0)


def _retargeting(settings: PreprocessSettings, motion: Motion, pose: Pose, fps: float) -> tuple[str, ToCanvas]:
    """Fits the motion to the build of the reference's `pose`. BadInput: they show no limb in common."""
    if settings.retarget == "published":
        first = motion[int(np.flatnonzero(motion.found("body"))[0])]
        return "published", PublishedRetargeting(first, pose)
    fitted = Retargeting.fit(motion, pose, fps)
    if fitted is None:
        raise BadInput("the reference picture and the driving video show no limb in common")
    return "robust", lambda pose, index: fitted(pose)
