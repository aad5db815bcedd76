"""A job's clips as clients see them: what was found in the driving video, checks, files that browsers can play."""

from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ValidationError

from wan_orchestration.api.estimate import Estimator, unknown
from wan_orchestration.api.models import NOT_FOR_CLIENTS, CharacterClips, ClipsCheck, ClipsInfo, ClipsLinks, Status
from wan_orchestration.api.playable import playable
from wan_orchestration.api.problems import Problem
from wan_orchestration.defs.clips.checks import judge
from wan_orchestration.families.animate.family import CLIPS as CLIP_FILES
from wan_orchestration.families.animate.family import REPLACEMENT_CLIPS
from wan_orchestration.families.animate_2.family import CLIPS as ANIMATE_2_FILES
from wan_orchestration.families.choose import FAMILIES
from wan_orchestration.jobs.clips import LOOK, OVERLAY, PEOPLE, TIMELINE, Canvas, character_folder
from wan_orchestration.jobs.folder import Job
from wan_orchestration.protocol.messages import Look, PreprocessResult
from wan_orchestration.quality.clips_quality import ClipsQuality, why_blocked
from wan_orchestration.settings.environment import Environment
from wan_orchestration.settings.generate import GenerateSettings
from wan_orchestration.settings.preprocess import PreprocessSettings
from wan_orchestration.video.reader import probe

M = TypeVar("M", bound=BaseModel)

ClipsFile = Literal["overlay", "driving", "pose", "face", "mask", "background", "people", "timeline", "contact_sheet"]

FILES: dict[ClipsFile, str] = {
    "overlay": OVERLAY,
    "driving": ANIMATE_2_FILES["src_driving"],
    "pose": CLIP_FILES["src_pose"],
    "face": CLIP_FILES["src_face"],
    "mask": REPLACEMENT_CLIPS["src_mask"],
    "background": REPLACEMENT_CLIPS["src_bg"],
    "people": PEOPLE,
    "timeline": TIMELINE,
    "contact_sheet": "contact_sheet.jpg",
}

CANVAS = ANIMATE_2_FILES["canvas"]

DRIVING = [family.clips("animate")[family.driving] for family in FAMILIES.values()]
"""The clips that show the motion. A folder of clips has one of them."""


@dataclass(frozen=True)
class ClipsFolder:
    """The folder of a job's clips, or of the preview of clips that are being made."""

    path: Path
    preview: bool
    copies: Path
    """Folder for copies of clips that browsers cannot play."""
    version: int
    """When the clips were made, in microseconds: changes when other clips are there."""

    @classmethod
    def find(cls, env: Environment, key: str, status: Status) -> "ClipsFolder | None":
        """The newest; None if there are no clips. A preview counts only while its run has not ended."""
        copies, previews = converted_folders(env, key)
        places = [(env.clips_root / key, False, copies)]
        if status in ("queued", "running"):
            places.insert(0, (env.previews_root / key, True, previews))
        for path, preview, copies in places:
            for file in DRIVING:
                # The folder may be replaced at any time.
                with suppress(OSError):
                    return cls(path, preview, copies, version=(path / file).lstat().st_mtime_ns // 1000)
        return None

    def of_character(self, number: int) -> "ClipsFolder":
        """The clips of one of several characters."""
        # A folder that is a link has no files.
        if number == 1 or self.path.is_symlink():
            return self
        folder = character_folder(number)
        return replace(self, path=self.path / folder, copies=self.copies / folder)

    def file(self, name: ClipsFile) -> Path | None:
        """A file by its name for clients; None if there is none. Follows no symbolic link."""
        path = self.path / FILES[name]
        return path if path.is_file() and not path.is_symlink() and not self.path.is_symlink() else None

    def for_browsers(self, name: ClipsFile) -> Path | None:
        """The same, in a format that browsers show. BadInput: it cannot be decoded."""
        path = self.file(name)
        return playable(path, self.copies / path.name) if path and path.suffix == ".mp4" else path


def converted_folders(env: Environment, key: str) -> tuple[Path, Path]:
    """Folders for copies of a job's clips, and of its preview, that browsers can play."""
    folder = env.data_root / "playable"
    return folder / f"{key}.clips", folder / f"{key}.clips-preview"


def clips_link(env: Environment, key: str, status: Status, path: str) -> str | None:
    """The path of a job's clips with their version; None if there are none."""
    folder = ClipsFolder.find(env, key, status)
    return f"{path}?v={folder.version}" if folder else None


def find_clips(env: Environment, key: str, status: Status) -> ClipsFolder:
    """Problem 404: there are no clips."""
    folder = ClipsFolder.find(env, key, status)
    if folder is None:
        raise Problem(404, f"job {key} has no clips")
    return folder


def clips_info(estimator: Estimator, job: Job, folder: ClipsFolder, settings: GenerateSettings, path: str) -> ClipsInfo:
    """Describes the clips in a folder. `settings` are those of the video, `path` is that of the clips in the API."""

    def links(character: int = 1) -> ClipsLinks:
        clips, query = folder.of_character(character), f"character={character}&" if character > 1 else ""
        return ClipsLinks(**{name: f"{path}/{name}?{query}v={folder.version}" for name in FILES if clips.file(name)})

    measured = ClipsQuality.read(folder.path)
    made = _read(PreprocessResult, folder.path / "preprocess.json")
    clip = made or probe(folder.path / FILES["pose"])
    # Of a family that fits the picture into frames of its own.
    canvas = folder.path / CANVAS
    frame = Canvas.read(canvas) if canvas.is_file() else clip
    if folder.preview:
        expected = unknown("known when all clips are made")
    else:
        characters = 1 + len(made.characters) if made else 1
        expected = estimator.estimate(settings, clip.frames, frame.width, frame.height, characters)
    return ClipsInfo(
        preview=folder.preview,
        model=settings.family.name,
        mode=made.mode if made else settings.mode,
        frames=clip.frames,
        fps=float(clip.fps),
        width=frame.width,
        height=frame.height,
        look=_read(Look, folder.path / LOOK),
        estimator=made and made.estimator,
        retarget=made and made.retarget,
        masks=made and made.masks,
        settings=made and _for_clients(made.settings),
        checks=_checks(job, measured),
        blocked=blocked(job, measured),
        estimate=expected,
        links=links(),
        characters=[
            CharacterClips(settings=_for_clients(one.settings), links=links(number))
            for number, one in enumerate(made.characters if made else (), 2)
        ],
    )


def _for_clients(settings: PreprocessSettings) -> dict[str, Any]:
    return settings.model_dump(mode="json", exclude=NOT_FOR_CLIENTS - {"mode"})


def blocked(job: Job, measured: ClipsQuality | None) -> str | None:
    """Why no video is made of the clips, and what to change; None if nothing prevents it. BadInput."""
    return measured and why_blocked(measured, job.check_settings(), ready_clips=job.kind == "clips")


def _checks(job: Job, measured: ClipsQuality | None) -> list[ClipsCheck]:
    """The results of the checks; none if the clips were not measured, as those of a preview."""
    limits = job.check_settings()
    return [
        ClipsCheck(name=name, passed=result.passed, text=result.description or "", blocks=name in limits.block)
        for name, result in (judge(measured, limits).items() if measured else ())
    ]


def _read(model: type[M], file: Path) -> M | None:
    """The content of a JSON file; None if it is missing, a link or cannot be read."""
    try:
        return None if file.is_symlink() else model.model_validate_json(file.read_bytes())
    except (OSError, ValidationError):
        return None
