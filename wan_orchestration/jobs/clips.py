"""Clips, the conditioning videos that generation reads: their names, checks of them, and copies of ready clips."""

import hashlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import count, takewhile
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from wan_orchestration.errors import BadInput, from_validation_error
from wan_orchestration.families.animate.family import REPLACEMENT_CLIPS
from wan_orchestration.families.choose import FIRST, family_of
from wan_orchestration.families.family import Family
from wan_orchestration.files import check_file, replacing, sha256
from wan_orchestration.settings.generate import Mode
from wan_orchestration.video.info import Sound, VideoInfo

JOINTS = "src_pose.npz"
"""The driving person's joints in the frames of the driving clip, written by preprocessing: `body` (T, 20, 3) float32:
x, y in px, confidence. They are those drawn in `src_pose.mp4`, if there is one."""

CONFIDENT = 0.5
"""Joints with less confidence than this are neither drawn nor measured."""

LOOK = "look.json"
"""What a person should see before generation. Preprocessing writes it with the three files that follow."""

OVERLAY = "overlay.mp4"
"""The driving video, frame for frame with the clips, with the skeleton and in replace mode the mask over it."""

PEOPLE = "people.jpg"
"""The first frame with the most people."""

TIMELINE = "timeline.jpg"
"""Small pictures of the whole driving video, side by side."""

MEASURES = "measures.json"
"""What the checks of the clips measured; see `quality/clips_quality.py`."""

FACE_SIZE = 512
"""Side of the square frames of `src_face.mp4`, px."""

REFERENCE_MIN = 16
"""Shortest side of `src_ref.png`, px."""


@dataclass(frozen=True)
class Canvas:
    """The generated frames of a family that fits the picture into them with bars, px. The video shows the picture."""

    area: int
    """Pixels that were asked for, `PreprocessSettings.resolution_area`."""
    height: int
    width: int
    top: int
    """The first row of the picture."""
    left: int
    picture_height: int
    picture_width: int

    @property
    def video_height(self) -> int:
        """Of the video. Its sides are even, so of an odd picture it leaves out the last row."""
        return self.picture_height // 2 * 2

    @property
    def video_width(self) -> int:
        """As `video_height`: of an odd picture, the video leaves out the last column."""
        return self.picture_width // 2 * 2

    @classmethod
    def read(cls, path: Path) -> "Canvas":
        """BadInput: the file holds no canvas, or the picture lies outside of it."""
        try:
            canvas = TypeAdapter(cls).validate_json(path.read_bytes(), strict=True)
        except ValidationError as error:
            raise from_validation_error(error, lambda field: f"{path}: {field}".rstrip(": ")) from None
        inside = canvas.top >= 0 and canvas.left >= 0 and min(canvas.picture_height, canvas.picture_width) >= 2
        inside = inside and canvas.top + canvas.picture_height <= canvas.height
        if not inside or canvas.left + canvas.picture_width > canvas.width:
            raise BadInput(
                f"{path}: found a picture of {canvas.picture_width}x{canvas.picture_height} at {canvas.left}, "
                f"{canvas.top}, expected one of 2x2 or more inside {canvas.width}x{canvas.height}"
            )
        return canvas


@dataclass(frozen=True)
class Clips:
    """Checked clips, ready for generation."""

    folder: Path
    mode: Mode
    videos: dict[str, VideoInfo]
    """By their names in `Family.clips`."""
    reference: Path
    sound: Sound
    """The sound of the driving clip, which the video gets."""
    notices: tuple[str, ...]
    """What a user should know about the clips, in words."""
    characters: tuple["Clips", ...] = ()
    """Clips of further characters, who replace other people in the same driving video, in the order of replacing."""
    model: str = FIRST.name
    """The family that they are for."""
    canvas: Canvas | None = None
    """None: the generated frames have the size of the driving clip."""

    @property
    def family(self) -> Family:
        return family_of(self.model)

    @property
    def driving(self) -> VideoInfo:
        """The clip that shows the motion, as skeletons or as it is. It sets the video's length, rate and sound."""
        return self.videos[self.family.driving]

    @property
    def skeleton(self) -> VideoInfo | None:
        """The clip that shows the motion as skeletons."""
        return self.videos.get("src_pose")

    @property
    def face(self) -> VideoInfo | None:
        return self.videos.get("src_face")

    @property
    def background(self) -> VideoInfo | None:
        return self.videos.get("src_bg")

    @property
    def mask(self) -> VideoInfo | None:
        return self.videos.get("src_mask")

    @property
    def height(self) -> int:
        """Of the generated frames, px."""
        return self.canvas.height if self.canvas else self.driving.height

    @property
    def width(self) -> int:
        """Of the generated frames, px."""
        return self.canvas.width if self.canvas else self.driving.width

    def with_background(self, background: VideoInfo | None) -> "Clips":
        """The same clips with another background, or without one."""
        videos = self.videos | {"src_bg": background}
        kept = {name: videos.get(name) for name in self.family.clips(self.mode)}
        return replace(self, videos={name: info for name, info in kept.items() if info is not None})

    def shown(self, frames: Any) -> Any:
        """The part of generated frames (..., H, W), an array or a tensor, that the video shows."""
        canvas = self.canvas
        if canvas is None:
            return frames
        rows = slice(canvas.top, canvas.top + canvas.video_height)
        return frames[..., rows, canvas.left : canvas.left + canvas.video_width]

    @cached_property
    def version(self) -> str:
        """SHA-256 over the files' names and contents. If equal clips are made again, the video stays up to date."""
        digest = hashlib.sha256()
        for name in sorted(self.family.clips(self.mode).values()):
            digest.update(f"{name}\0{sha256(self.folder / name)}\n".encode())
        for one in self.characters:
            digest.update(f"{one.folder.name}\0{one.version}\n".encode())
        return digest.hexdigest()

    def at(self, folder: Path) -> "Clips":
        """The same facts about copies of the clips in another folder."""

        def moved(info: VideoInfo) -> VideoInfo:
            return replace(info, path=folder / info.path.name)

        return replace(
            self,
            folder=folder,
            videos={name: moved(info) for name, info in self.videos.items()},
            reference=folder / self.reference.name,
            sound=replace(self.sound, path=folder / self.sound.path.name),
            characters=tuple(one.at(folder / one.folder.name) for one in self.characters),
        )


def check_clips(folder: Path, mode: Mode, refert_num: int = 1, model: str = FIRST.name) -> Clips:
    """Checks that generation can use the clips in `folder`: decodes their first frames, and all of the sound.

    `Clips.notices` describes flaws of the files that are no errors, such as damaged sound, and how generation uses
    clips that differ in length or rate. In mode replace, checks the clips of further characters too.

    BadInput: a file missing, unreadable or truncated; sides of the driving clip not multiples of 16; a pose clip of 1
    frame or of no more than `refert_num`; a face clip of 1 frame or not 512x512; background or mask of another size
    than the pose clip; a reference picture that cannot be decoded, has a side under 16 px, or has not the size of its
    canvas.
    """
    # PyAV takes a third of a second to import, and the code location loads this module.
    from wan_orchestration.video.reader import probe  # noqa: PLC0415
    from wan_orchestration.video.sound import find_sound  # noqa: PLC0415
    from wan_orchestration.video.stills import read_image  # noqa: PLC0415

    family = family_of(model)
    paths = _find_clips(Path(folder), mode, family)
    videos = {name: probe(path) for name, path in paths.items() if path.suffix == ".mp4"}
    driving = videos[family.driving]
    _check_sides(driving.path, driving.width, driving.height)
    if "src_face" in videos:
        _check_length(driving, refert_num)
        _check_face(videos["src_face"])
    for name in REPLACEMENT_CLIPS.keys() & videos.keys():
        _check_size(videos[name], driving)
    height, width = read_image(paths["src_ref"]).shape[:2]
    if min(height, width) < REFERENCE_MIN:
        raise BadInput(f"{paths['src_ref']}: found {width}x{height} pixels, expected sides of {REFERENCE_MIN} or more")
    canvas = Canvas.read(paths["canvas"]) if "canvas" in paths else None
    if canvas is not None:
        _check_canvas(canvas, paths["src_ref"], width, height, driving)
    sound = find_sound(driving.path)
    notices = [f"{info.path.name}: {notice}" for info in videos.values() for notice in info.notices]
    notices += [notice for info in videos.values() for notice in _differences(info, driving)]
    return Clips(
        folder=Path(folder),
        mode=mode,
        videos=videos,
        reference=paths["src_ref"],
        sound=sound,
        notices=(*notices, *sound.notices),
        characters=tuple(check_clips(one, mode, refert_num) for one in _further(Path(folder)))
        if mode == "replace"
        else (),
        model=family.name,
        canvas=canvas,
    )


def character_folder(number: int) -> str:
    """Name of the folder, beside the clips of the first character, that has those of another; numbers begin at 2."""
    return f"character_{number}"


def _further(folder: Path) -> Iterator[Path]:
    """The folders of further characters that exist."""
    paths = (folder / character_folder(number) for number in count(2))
    return takewhile(Path.is_dir, paths)


def _find_clips(folder: Path, mode: Mode, family: Family) -> dict[str, Path]:
    """The clips that a mode needs, by name of the input. BadInput: one is missing or not a plain file."""
    names = family.clips(mode)
    paths = {name: folder / file for name, file in names.items()}
    missing = [path.name for path in paths.values() if not os.path.lexists(path)]
    if missing:
        needs = f"mode {mode}" if family.ready_clips else f"model {family.name}"
        raise BadInput(f"{folder}: missing {', '.join(missing)}; {needs} needs {', '.join(names.values())}")
    for path in paths.values():
        check_file(path)
    return paths


def _check_sides(path: Path, width: int, height: int) -> None:
    if width % 16 or height % 16:
        nearest = f"{max(width // 16, 1) * 16}x{max(height // 16, 1) * 16}"
        raise BadInput(
            f"{path}: found {width}x{height}, expected sides that are multiples of 16; "
            f"scale or crop it, to {nearest} for example"
        )


def _check_canvas(canvas: Canvas, reference: Path, width: int, height: int, driving: VideoInfo) -> None:
    if (canvas.width, canvas.height) != (width, height):
        raise BadInput(f"{reference}: found {width}x{height}, expected the canvas, {canvas.width}x{canvas.height}")
    _check_sides(reference, width, height)
    for path, pixels in ((reference, width * height), (driving.path, driving.width * driving.height)):
        if pixels > canvas.area:
            raise BadInput(f"{path}: found {pixels} pixels, expected at most the canvas' area, {canvas.area}")


def _check_length(pose: VideoInfo, refert_num: int) -> None:
    least = max(2, refert_num + 1)
    if pose.frames < least:
        reason = f" (more than refert_num {refert_num})" if least > 2 else ""
        raise BadInput(f"{pose.path}: found {_frames(pose)}, expected {least} or more{reason}")


def _check_face(face: VideoInfo) -> None:
    if face.frames < 2:
        raise BadInput(f"{face.path}: found {_frames(face)}, expected 2 or more")
    if (face.width, face.height) != (FACE_SIZE, FACE_SIZE):
        raise BadInput(f"{face.path}: found {face.width}x{face.height}, expected {FACE_SIZE}x{FACE_SIZE}")


def _check_size(info: VideoInfo, pose: VideoInfo) -> None:
    if (info.width, info.height) != (pose.width, pose.height):
        raise BadInput(
            f"{info.path}: found {info.width}x{info.height}, expected the size of {pose.path.name}, "
            f"{pose.width}x{pose.height}"
        )


def _differences(info: VideoInfo, pose: VideoInfo) -> list[str]:
    """How a clip differs from the pose clip in length and rate, and how generation pairs their frames."""
    found = []
    if info.frames != pose.frames:
        use = "it is played forwards and backwards" if info.frames < pose.frames else "the rest is not used"
        found.append(f"{info.path.name}: {_frames(info)}, but {pose.path.name} has {pose.frames}; {use}")
    # 30, 30000/1001 and 29.97 count as one rate.
    if abs(info.fps - pose.fps) > pose.fps / 500:
        found.append(
            f"{info.path.name}: {float(info.fps):.6g} frames a second, but {pose.path.name} has "
            f"{float(pose.fps):.6g}; frames are paired by number, at the rate of {pose.path.name}"
        )
    return found


def _frames(info: VideoInfo) -> str:
    return "1 frame" if info.frames == 1 else f"{info.frames} frames"


def place_clips(source: Path, target: Path, mode: Mode, refert_num: int = 1) -> Clips:
    """Checks ready clips in the folder `source` and copies them to `target`, in place of an earlier run's copies.

    BadInput: as for `check_clips`, or a frame cannot be decoded.
    """
    from wan_orchestration.video.reader import FrameReader  # noqa: PLC0415

    # Ready clips are those of one character.
    clips = replace(check_clips(source, mode, refert_num), characters=())
    for info in clips.videos.values():
        with FrameReader(info.path) as reader:
            reader.verify()
    with replacing(target) as part:
        part.mkdir()
        for file in clips.family.clips(mode).values():
            shutil.copyfile(source / file, part / file)
    return clips.at(target)
