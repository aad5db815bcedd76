"""The progress of each job's run, in a small file `DATA_ROOT/progress/<job>.json` that other processes can read."""

from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field, ValidationError

from wan_orchestration.files import remove, replacing
from wan_orchestration.protocol.messages import PreprocessProgress, Progress

PREPROCESSING = {"keypoints": (0.0, 0.13), "clips": (0.15, 0.18)}
"""Start and end of each pass of preprocessing, as fractions of a run that also generates."""
STARTING, GENERATING = 0.19, 0.2
"""Fractions of such a run that are done when the engine starts, and when it begins to generate. A run that only makes
clips ends at the first."""
ENDING = 0.98
"""Fraction of a run that is done when the video is made; checks follow."""
SLOW_SECONDS = 10.0
"""If nothing can be counted, the fraction moves half the way to the next known value in this time."""


class RunProgress(BaseModel):
    """A run's newest message about a job."""

    run_id: str
    at: datetime
    progress: Annotated[Progress | PreprocessProgress, Field(discriminator="kind")]
    preprocesses: bool = False
    """Whether this run made the job's clips too."""

    @property
    def fraction(self) -> float | None:
        """How much of the whole run is done; None while that is unknown."""
        now, begin = self.progress, GENERATING if self.preprocesses else 0.0
        if isinstance(now, PreprocessProgress):
            if now.phase == "preview":
                return 0.0
            first, last = PREPROCESSING.get(now.phase, (0.0, 0.0))
            if now.done < now.total:
                return first + (last - first) * now.done / now.total
            return self._drift(last, STARTING if now.phase == "clips" else PREPROCESSING["clips"][0])
        if now.fraction is None:
            return self._drift(STARTING, GENERATING) if self.preprocesses else None
        done = begin + (ENDING - begin) * now.fraction
        return self._drift(done, 1.0) if now.fraction == 1 else done

    def _drift(self, start: float, end: float) -> float:
        """A value between two fractions that grows with the time since the message."""
        age = max((datetime.now(UTC) - self.at).total_seconds(), 0.0)
        return start + (end - start) * age / (age + SLOW_SECONDS)


def write(folder: Path, run_id: str, progress: Progress | PreprocessProgress) -> None:
    """Write a job's progress; `folder` is DATA_ROOT/progress. Does nothing if the folder cannot be written to."""
    last = read(folder, progress.job_id, run_id)
    preprocesses = isinstance(progress, PreprocessProgress) or (last is not None and last.preprocesses)
    record = RunProgress(run_id=run_id, at=datetime.now(UTC), progress=progress, preprocesses=preprocesses)
    with suppress(OSError), replacing(folder / f"{progress.job_id}.json") as part:
        part.write_text(record.model_dump_json())


def read(folder: Path, job_id: str, run_id: str) -> RunProgress | None:
    """This run's newest message about the job; None before the first."""
    try:
        record = RunProgress.model_validate_json((folder / f"{job_id}.json").read_bytes())
    except (OSError, ValidationError):
        return None
    return record if record.run_id == run_id else None


def delete(folder: Path, job_id: str) -> None:
    """Delete a job's progress, if there is any."""
    remove(folder / f"{job_id}.json")
