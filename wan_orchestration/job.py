"""The job folder: its key, its inputs, its `job.yaml`, and the clips that generation reads.

A folder `data/jobs/<key>/` is one job. It holds either ready clips (`src_pose.mp4`, `src_face.mp4`, `src_ref.png`,
for replacement also `src_bg.mp4` and `src_mask.mp4`) or raw inputs (a video `driving.<mp4|mov|...>` and a picture
`reference.<png|jpg|...>`, in upper or lower case), and perhaps a `job.yaml`. Where both lie there, ready clips that
are complete for the job's mode win. Other files are left alone. A job folder is only read.
"""

import hashlib
import os
import re
import shutil
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field

from wan_orchestration.errors import BadInput, unknown_key, validate
from wan_orchestration.files import replacing
from wan_orchestration.formats import A_PICTURE, A_VIDEO, PARTIAL, PICTURE_SUFFIXES, VIDEO_SUFFIXES, describe, look
from wan_orchestration.settings import (
    GenerateSettings,
    GenerateVariables,
    Mode,
    PreprocessSettings,
    PreprocessVariables,
)

if TYPE_CHECKING:
    from wan_orchestration.video import Sound, VideoInfo

KEY = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
KEY_PART = 24
"""Letters of a file's name in a key that is made of it."""
JOB_FILE = "job.yaml"
JOB_FILE_BYTES = 1_000_000

CLIPS = {"src_pose": "src_pose.mp4", "src_face": "src_face.mp4", "src_ref": "src_ref.png"}
REPLACEMENT_CLIPS = {"src_bg": "src_bg.mp4", "src_mask": "src_mask.mp4"}
RAW = {"driving": VIDEO_SUFFIXES, "reference": PICTURE_SUFFIXES}
SAY_NOTHING = {name.replace("_", "-") for name in (*RAW, *CLIPS, *REPLACEMENT_CLIPS)}
"""Names of files of which no key is made."""
JOINTS = "src_pose.npz"
"""Beside clips that were made here: the joints of `src_pose.mp4`, `body` (T, 20, 3) float32: x, y in px, confidence."""
KEYPOINTS = ("keypoints.npz", "keypoints.json", "keypoints")
REFERENCE_KEYPOINTS = ("reference_keypoints.npz", "reference_keypoints.json")
EXPECTED = f"{', '.join(CLIPS.values())}, or " + " and ".join(f"{n}.<{'|'.join(s)}>" for n, s in RAW.items())
NAMED = 10
"""Files of a folder that a message names."""

FACE_SIZE = 512
REFERENCE_MIN = 16

Settings = TypeVar("Settings", GenerateSettings, PreprocessSettings)


def clip_names(mode: Mode) -> dict[str, str]:
    """File names of the ready clips that a mode needs, by name of the input."""
    return CLIPS | REPLACEMENT_CLIPS if mode == "replace" else CLIPS


def check_key(key: str) -> str:
    """The key itself when it may name a job: `[a-z0-9][a-z0-9._-]{0,62}`; BadInput otherwise."""
    if not KEY.fullmatch(key):
        raise BadInput(
            f"job key {key!r}: expected 1 to 63 of a-z, 0-9, '.', '_' and '-', the first a letter or digit; "
            "rename the job folder"
        )
    return key


def key_from(*files: str) -> str:
    """A key from the names of a job's files, `ada-dance` for `Ada.png` and `C:\\dance.mp4`; else ""."""
    parts = []
    for file in files:
        stem = PurePosixPath(file.replace("\\", "/")).stem
        letters = unicodedata.normalize("NFKD", stem.casefold()).encode("ascii", "ignore").decode()
        part = re.sub(r"[^a-z0-9]+", "-", letters).strip("-")[:KEY_PART].strip("-")
        if part not in ("", *parts, *SAY_NOTHING):
            parts.append(part)
    return "-".join(parts)


class JobFile(BaseModel):
    """The content of `job.yaml`."""

    model_config = ConfigDict(extra="forbid")

    mode: Mode | None = Field(default=None, description="animate or replace, for preprocessing and generation.")
    priority: int = Field(default=0, description="Jobs of higher priority run first.")
    preprocess: dict[str, Any] = Field(default={}, description="Fields of PreprocessSettings, without mode.")
    generate: dict[str, Any] = Field(default={}, description="Fields of GenerateSettings, without mode.")


@dataclass(frozen=True)
class Job:
    """One job folder, its settings checked. The contents of its inputs are not: see `check_clips`."""

    key: str
    folder: Path
    file: JobFile
    kind: Literal["clips", "raw"]
    inputs: dict[str, Path]
    """By name: src_pose, src_face, src_ref (src_bg, src_mask where present), or driving, reference (and what
    preprocessing reads beside them: keypoints, reference_keypoints, mask)."""

    @classmethod
    def open(cls, folder: Path, key: str | None = None) -> "Job":
        """Reads a job folder; `key` stands in for the folder's name where that is not a key.

        BadInput: bad key, no such folder, inputs missing or ambiguous, a broken link, a fault in `job.yaml`.
        """
        folder = Path(folder).absolute()
        key = check_key(folder.name if key is None else key)
        if not folder.is_dir():
            raise BadInput(f"{folder}: no such job folder; expected a folder with {EXPECTED}")
        file = _read_job_file(folder / JOB_FILE)
        generate = _settings(GenerateSettings, folder / JOB_FILE, "generate", file.mode, file.generate, {})
        preprocess = _settings(PreprocessSettings, folder / JOB_FILE, "preprocess", file.mode, file.preprocess, {})
        kind, inputs = _find_inputs(folder, generate.mode, preprocess)
        return cls(key, folder, file, kind, inputs)

    def generate_settings(self, **overrides: Any) -> GenerateSettings:
        """Overrides that are not None, then `job.yaml`, then the environment, then the defaults. BadInput."""
        return _settings(
            GenerateSettings, self.folder / JOB_FILE, "generate", self.file.mode, self.file.generate, overrides
        )

    def preprocess_settings(self, **overrides: Any) -> PreprocessSettings:
        """As `generate_settings`, for preprocessing. BadInput."""
        return _settings(
            PreprocessSettings, self.folder / JOB_FILE, "preprocess", self.file.mode, self.file.preprocess, overrides
        )

    def fingerprint(self) -> str:
        """SHA-256 over the names and contents of the inputs; settings are not part of it."""
        digest = hashlib.sha256()
        for path in sorted(file for place in self.inputs.values() for file in _files(place)):
            with path.open("rb") as content:
                contents = hashlib.file_digest(content, "sha256").hexdigest()
            digest.update(f"{path.relative_to(self.folder).as_posix()}\0{contents}\n".encode())
        return digest.hexdigest()


def _files(place: Path) -> Iterator[Path]:
    if place.is_dir():
        yield from (path for path in place.rglob("*") if path.is_file())
    else:
        yield place


def _read_job_file(path: Path) -> JobFile:
    if not os.path.lexists(path):
        return JobFile()
    _check_file(path)
    if path.stat().st_size > JOB_FILE_BYTES:
        raise BadInput(f"{path}: {path.stat().st_size} bytes, expected a short YAML file of at most 1 MB")
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if content is None:
        return JobFile()
    if not isinstance(content, dict):
        raise BadInput(
            f"{path}: found a {type(content).__name__}, expected a mapping with {', '.join(JobFile.model_fields)}"
        )
    return validate(JobFile, content, lambda field: f"{path}: {field}")


def take_in(model: type[Settings], given: Mapping[str, Any], name: Callable[[str], str] = str) -> Settings:
    """A job's settings: what is given, over the environment, over the defaults. BadInput, as by `validate`."""
    variables = GenerateVariables if issubclass(model, GenerateSettings) else PreprocessVariables
    return model.model_validate(validate(variables, given, name).model_dump())


def _settings(
    model: type[Settings], path: Path, block: str, mode: Mode | None, given: dict[str, Any], overrides: dict[str, Any]
) -> Settings:
    overrides = {field: value for field, value in overrides.items() if value is not None}
    if "mode" in given:
        known = [field for field in model.model_fields if field != "mode"]
        raise unknown_key(f"{path}: {block}.mode (mode stands at the top of the file)", "mode", known)

    def name(field: str) -> str:
        if field.split(".")[0] in overrides:
            return field
        return f"{path}: {field}" if field == "mode" else f"{path}: {block}.{field}".rstrip(".")

    return take_in(model, ({} if mode is None else {"mode": mode}) | given | overrides, name)


def _find_inputs(
    folder: Path, mode: Mode, preprocess: PreprocessSettings
) -> tuple[Literal["clips", "raw"], dict[str, Path]]:
    names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    ready = {name: folder / file for name, file in clip_names("replace").items() if file in names}
    raw = {}
    for name, suffixes in RAW.items():
        # Cameras write .MOV and .JPG.
        found = [n for n in names if Path(n).stem.lower() == name and Path(n).suffix[1:].lower() in suffixes]
        if len(found) > 1:
            raise BadInput(f"{folder}: found {' and '.join(found)}, expected one {name} file; remove the others")
        if found:
            raw[name] = folder / found[0]

    if ready.keys() >= clip_names(mode).keys() or (ready.keys() >= CLIPS.keys() and len(raw) < len(RAW)):
        kind, inputs = "clips", ready
    elif len(raw) == len(RAW):
        keypoints = [preprocess.keypoints] if preprocess.keypoints else KEYPOINTS
        beside = {
            "keypoints": next((folder / name for name in keypoints if name in names), None),
            "reference_keypoints": next((folder / name for name in REFERENCE_KEYPOINTS if name in names), None),
            "mask": folder / preprocess.mask_file if preprocess.mask_file in names else None,
        }
        kind, inputs = "raw", raw | {name: path for name, path in beside.items() if path is not None}
    else:
        raise BadInput(f"{folder}: {_missing(folder, names, ready, raw)}; expected {EXPECTED}")
    for name, path in inputs.items():
        if name != "keypoints":
            _check_file(path)
        if name in RAW:
            _check_content(path, RAW[name])
    return kind, inputs


def _missing(folder: Path, names: list[str], ready: dict[str, Path], raw: dict[str, Path]) -> str:
    """What a folder lacks, and which of its files may be meant for it."""
    missing = [file for name, file in CLIPS.items() if name not in ready] if ready else []
    lacking = [name for name in RAW if name not in raw]
    beside = [_hint(folder / file, name) for name in lacking for file in names if file.lower().startswith(name)]
    if raw or beside:
        missing += lacking
    if missing:
        return "; ".join([f"missing {', '.join(missing)}", *beside])
    found = [f"{name} ({describe(folder / name)})" for name in names[:NAMED]]
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"no inputs, found {', '.join(found) or 'an empty folder'}{more}"


def _hint(path: Path, name: str) -> str:
    found, suffix = look(path)
    if PARTIAL.fullmatch(path.name):
        return f"found {path.name}, which is not whole yet"
    if suffix in RAW[name]:
        return f"found {path.name}, {found}: rename it {name}.{suffix}"
    return f"found {path.name}, {found}"


def _check_content(path: Path, suffixes: tuple[str, ...]) -> None:
    """BadInput where the first bytes are those of something else; what they do not tell, decoding will."""
    found, suffix = look(path)
    if suffix is not None and suffix not in suffixes:
        raise BadInput(f"{path}: found {found}, expected {A_VIDEO if suffixes == VIDEO_SUFFIXES else A_PICTURE}")


def _check_file(path: Path) -> None:
    if path.is_symlink() and not path.exists():
        raise BadInput(f"{path}: a broken link to {path.readlink()}")
    if not path.is_file():
        raise BadInput(f"{path}: found a folder or device, expected a file")


@dataclass(frozen=True)
class Clips:
    """Checked clips, ready for generation."""

    folder: Path
    mode: Mode
    pose: "VideoInfo"
    face: "VideoInfo"
    reference: Path
    background: "VideoInfo | None"
    mask: "VideoInfo | None"
    sound: "Sound"
    """Of the pose clip; the video gets it."""
    notices: tuple[str, ...]
    """What a user should know of the clips, in words."""

    def videos(self) -> "list[VideoInfo]":
        """All that are video."""
        return [info for info in (self.pose, self.face, self.background, self.mask) if info is not None]


def check_clips(folder: Path, mode: Mode, refert_num: int = 1) -> Clips:
    """Looks at the clips in `folder` as generation will use them: decodes first frames, and the sound.

    A flaw of the sound is no error, but is said in `Clips.notices`; so is what becomes of clips that differ in
    length or rate.

    BadInput: a file missing, unreadable or truncated; pose sides not multiples of 16; a pose clip of 1 frame or
    of no more than `refert_num`; a face clip of 1 frame or not 512x512; background or mask of another size than
    the pose clip; a reference picture that cannot be decoded.
    """
    # PyAV takes a third of a second to import, and the code location loads this module.
    from wan_orchestration.video import find_sound, probe, read_image  # noqa: PLC0415

    folder = Path(folder)
    paths = {name: folder / file for name, file in clip_names(mode).items()}
    missing = [path.name for path in paths.values() if not os.path.lexists(path)]
    if missing:
        raise BadInput(
            f"{folder}: missing {', '.join(missing)}; mode {mode} needs {', '.join(clip_names(mode).values())}"
        )
    for path in paths.values():
        _check_file(path)
    videos = {name: probe(path) for name, path in paths.items() if path.suffix == ".mp4"}
    pose, face = videos["src_pose"], videos["src_face"]
    if pose.width % 16 or pose.height % 16:
        nearest = f"{max(pose.width // 16, 1) * 16}x{max(pose.height // 16, 1) * 16}"
        raise BadInput(
            f"{pose.path}: found {pose.width}x{pose.height}, expected sides that are multiples of 16; "
            f"scale or crop it, to {nearest} for example"
        )
    least = max(2, refert_num + 1)
    if pose.frames < least:
        reason = f" (more than refert_num {refert_num})" if least > 2 else ""
        raise BadInput(f"{pose.path}: found {_frames(pose)}, expected {least} or more{reason}")
    if face.frames < 2:
        raise BadInput(f"{face.path}: found {_frames(face)}, expected 2 or more")
    if (face.width, face.height) != (FACE_SIZE, FACE_SIZE):
        raise BadInput(f"{face.path}: found {face.width}x{face.height}, expected {FACE_SIZE}x{FACE_SIZE}")
    for name in REPLACEMENT_CLIPS.keys() & videos.keys():
        info = videos[name]
        if (info.width, info.height) != (pose.width, pose.height):
            raise BadInput(
                f"{info.path}: found {info.width}x{info.height}, expected the size of {pose.path.name}, "
                f"{pose.width}x{pose.height}"
            )
    height, width = read_image(paths["src_ref"]).shape[:2]
    if min(height, width) < REFERENCE_MIN:
        raise BadInput(f"{paths['src_ref']}: found {width}x{height} pixels, expected sides of {REFERENCE_MIN} or more")
    sound = find_sound(pose.path)
    told = [f"{info.path.name}: {notice}" for info in videos.values() for notice in info.notices]
    told += [notice for info in videos.values() for notice in _unlike(info, pose)]
    return Clips(
        folder=folder,
        mode=mode,
        pose=pose,
        face=face,
        reference=paths["src_ref"],
        background=videos.get("src_bg"),
        mask=videos.get("src_mask"),
        sound=sound,
        notices=(*told, *sound.notices),
    )


def _unlike(info: "VideoInfo", pose: "VideoInfo") -> list[str]:
    """How generation, which takes frame for frame, uses a clip that differs from the pose clip in length or rate."""
    found = []
    if info.frames != pose.frames:
        use = "it is played forwards and backwards" if info.frames < pose.frames else "the rest is not used"
        found.append(f"{info.path.name}: {_frames(info)}, but {pose.path.name} has {pose.frames}; {use}")
    # 30, 30000/1001 and 29.97 count as one rate.
    if abs(info.fps - pose.fps) > pose.fps / 500:
        found.append(
            f"{info.path.name}: {float(info.fps):.6g} frames a second, but {pose.path.name} has "
            f"{float(pose.fps):.6g}; frame goes with frame, at the rate of {pose.path.name}"
        )
    return found


def _frames(info: "VideoInfo") -> str:
    return "1 frame" if info.frames == 1 else f"{info.frames} frames"


def place_clips(job: Job, target: Path, mode: Mode | None = None) -> Clips:
    """Copies a job's ready clips to the folder `target`, replacing what an earlier run placed there.

    `mode` overrides the job's. BadInput as for `check_clips`, and for any frame that cannot be decoded.
    """
    from wan_orchestration.video import FrameReader  # noqa: PLC0415

    settings = job.generate_settings(mode=mode)
    clips = check_clips(job.folder, settings.mode, settings.refert_num)
    for info in clips.videos():
        with FrameReader(info.path) as reader:
            reader.verify()
    with replacing(target) as part:
        part.mkdir()
        for file in clip_names(settings.mode).values():
            shutil.copyfile(job.folder / file, part / file)
    return check_clips(target, settings.mode, settings.refert_num)
