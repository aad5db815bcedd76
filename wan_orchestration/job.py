"""The job folder: its key, its inputs, its `job.yaml`, and the clips that generation reads.

A folder `data/jobs/<key>/` is one job. It holds either ready clips (`src_pose.mp4`, `src_face.mp4`, `src_ref.png`,
for replacement also `src_bg.mp4` and `src_mask.mp4`) or raw inputs (`driving.<mp4|mov|webm|mkv>` and
`reference.<png|jpg|jpeg|webp>`), and perhaps a `job.yaml`. Complete ready clips win over raw inputs; other files
are left alone. A job folder is only read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from wan_orchestration.settings import GenerateSettings, Mode, PreprocessSettings

if TYPE_CHECKING:
    from wan_orchestration.video import VideoInfo


def check_key(key: str) -> str:
    """The key itself when it may name a job: `[a-z0-9][a-z0-9._-]{0,62}`; BadInput otherwise."""
    raise NotImplementedError


class JobFile(BaseModel):
    """The content of `job.yaml`."""

    model_config = ConfigDict(extra="forbid")

    mode: Mode | None = Field(None, description="animate or replace, for preprocessing and generation.")
    priority: int = Field(0, description="Jobs of higher priority run first.")
    preprocess: dict[str, Any] = Field({}, description="Fields of PreprocessSettings, without mode.")
    generate: dict[str, Any] = Field({}, description="Fields of GenerateSettings, without mode.")


@dataclass(frozen=True)
class Job:
    """One job folder, its settings checked. The contents of its inputs are not: see `check_clips`."""

    key: str
    folder: Path
    file: JobFile
    kind: Literal["clips", "raw"]
    inputs: dict[str, Path]
    """By name: src_pose, src_face, src_ref (src_bg, src_mask), or driving, reference."""

    @classmethod
    def open(cls, folder: Path, key: str | None = None) -> Job:
        """Reads a job folder; `key` stands in for the folder's name where that is not a key. BadInput."""
        raise NotImplementedError

    def generate_settings(self, **overrides: Any) -> GenerateSettings:
        """Overrides that are not None, then `job.yaml`, then the environment, then the defaults. BadInput."""
        raise NotImplementedError

    def preprocess_settings(self, **overrides: Any) -> PreprocessSettings:
        """As `generate_settings`, for preprocessing. BadInput."""
        raise NotImplementedError

    def fingerprint(self) -> str:
        """SHA-256 over the names and contents of the inputs; settings are not part of it."""
        raise NotImplementedError


@dataclass(frozen=True)
class Clips:
    """Checked clips, ready for generation."""

    folder: Path
    mode: Mode
    pose: VideoInfo
    face: VideoInfo
    reference: Path
    background: VideoInfo | None
    mask: VideoInfo | None


def check_clips(folder: Path, mode: Mode, refert_num: int = 1) -> Clips:
    """Looks at the clips in `folder` as generation will use them. BadInput: anything it could not use."""
    raise NotImplementedError


def place_clips(job: Job, target: Path, mode: Mode | None = None) -> Clips:
    """Copies a job's ready clips to `target`, every frame decoded once; replaces what an earlier run placed."""
    raise NotImplementedError
