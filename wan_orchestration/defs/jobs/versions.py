"""Hashes of a job at one moment. Runs are tagged with them, and they are data versions of assets."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from wan_orchestration.families.choose import FIRST
from wan_orchestration.jobs.folder import Job, JobFile
from wan_orchestration.settings.checks import decisive
from wan_orchestration.settings.generate import Mode
from wan_orchestration.settings.preprocess import PreprocessSettings


@dataclass(frozen=True)
class JobVersion:
    """A job folder's content and settings at one moment."""

    key: str
    mode: Mode
    priority: int
    content: str
    """Hash of the inputs and of `job.yaml` without the priority. The job's runs are tagged with it."""
    inputs: str
    """Data version of `job_inputs`: the files, and how they are preprocessed."""
    settings: str
    """Data version of `job_settings`: the settings that decide how the video looks."""
    model: str = FIRST.name
    variant: str = "distilled"
    """They tell which weights the job needs, see `hub.resolve`."""
    review: bool = False
    """Whether somebody wants to look at the clips before the video is made."""

    @classmethod
    def of(cls, job: Job, fingerprint: str | None = None) -> "JobVersion":
        """An opened job's version. A known `fingerprint` saves reading the inputs. BadInput: bad settings."""
        fingerprint = fingerprint or job.fingerprint()
        generate = job.generate_settings()
        return cls(
            key=job.key,
            mode=generate.mode,
            priority=job.file.priority,
            content=_hash([fingerprint, _file_content(job.file)])[:16],
            inputs=_hash(
                [
                    fingerprint,
                    *map(_preprocess_content, job.all_preprocess_settings()),
                    *(one.picture for one in job.file.characters),
                ]
            ),
            settings=_hash(decisive(generate, job.check_settings())),
            model=generate.model,
            variant=generate.variant,
            review=job.file.review,
        )

    @property
    def urgency(self) -> tuple[int, str]:
        """The sort key of jobs: the highest priority first, then by name."""
        return -self.priority, self.key


def _file_content(file: JobFile) -> dict[str, Any]:
    """Fields of version 0.1, and later ones that are given: so a new version of this program runs no job again."""
    later = file.model_dump(mode="json", exclude={"mode", "priority", "preprocess", "generate"}, exclude_defaults=True)
    return file.model_dump(mode="json", include={"mode", "preprocess", "generate"}) | later


def _preprocess_content(settings: PreprocessSettings) -> dict[str, Any]:
    """As `dumped`, without fields of later versions that are not given: so a new version makes no clips again."""
    later = set() if settings.mask_hints else {"mask_hints"}
    later |= {"model"} if settings.family is FIRST else set()
    return settings.model_dump(mode="json", exclude=later)


def dumped(settings: BaseModel) -> dict[str, Any]:
    """Settings as JSON."""
    return settings.model_dump(mode="json")


def _hash(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
