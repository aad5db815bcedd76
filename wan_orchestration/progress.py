"""How far a job's run is: a small file for each job, `DATA_ROOT/progress/<job>.json`, for those outside of it."""

from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field, ValidationError

from wan_orchestration.files import remove, replacing
from wan_orchestration.messages import PreprocessProgress, Progress

PREPROCESSING = {"keypoints": (0.0, 0.15), "clips": (0.15, 0.2)}
"""The shares that its passes are taken to have of a run that also generates."""


class RunProgress(BaseModel):
    """What a run has reported last of a job."""

    run_id: str
    at: datetime
    progress: Annotated[Progress | PreprocessProgress, Field(discriminator="kind")]
    preprocesses: bool = False
    """Whether this run has made the job's clips too."""

    @property
    def fraction(self) -> float | None:
        """How much of the whole run is done; None where that is not known yet."""
        now = self.progress
        if isinstance(now, PreprocessProgress):
            begin, end = PREPROCESSING.get(now.phase, (0.0, 0.0))
            # After a pass comes what has no frames to count.
            return begin + (end - begin) * now.done / now.total if now.done < now.total else None
        if now.fraction is None or not self.preprocesses:
            return now.fraction
        begin = max(end for _, end in PREPROCESSING.values())
        return begin + (1 - begin) * now.fraction


def write(folder: Path, run_id: str, progress: Progress | PreprocessProgress) -> None:
    """Note how far a job is; `folder` is DATA_ROOT/progress. Where that cannot be written to, nothing is noted."""
    last = read(folder, progress.job_id, run_id)
    preprocesses = isinstance(progress, PreprocessProgress) or (last is not None and last.preprocesses)
    note = RunProgress(run_id=run_id, at=datetime.now(UTC), progress=progress, preprocesses=preprocesses)
    with suppress(OSError), replacing(folder / f"{progress.job_id}.json") as part:
        part.write_text(note.model_dump_json())


def read(folder: Path, job_id: str, run_id: str) -> RunProgress | None:
    """What this run has reported last of the job; None before it has."""
    try:
        note = RunProgress.model_validate_json((folder / f"{job_id}.json").read_bytes())
    except (OSError, ValidationError):
        return None
    return note if note.run_id == run_id else None


def forget(folder: Path, job_id: str) -> None:
    """Once there is nothing more to come."""
    remove(folder / f"{job_id}.json")
