"""How far a job's run is: a small file for each job, `DATA_ROOT/progress/<job>.json`, for those outside of it."""

from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field, ValidationError

from wan_orchestration.files import remove, replacing
from wan_orchestration.protocol.messages import PreprocessProgress, Progress

PREPROCESSING = {"keypoints": (0.0, 0.13), "clips": (0.15, 0.18)}
"""The shares that its passes are taken to have of a run that also generates."""
STARTING, GENERATING, ENDING = 0.19, 0.2, 0.98
"""What is done of such a run when the engine is started and when it begins; of any run when the video is there."""
SLOW_SECONDS = 10.0
"""Half of what lies before the next number is passed in so long, where nothing can be counted."""


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
        now, begin = self.progress, GENERATING if self.preprocesses else 0.0
        if isinstance(now, PreprocessProgress):
            first, last = PREPROCESSING.get(now.phase, (0.0, 0.0))
            if now.done < now.total:
                return first + (last - first) * now.done / now.total
            return self._slowly(last, STARTING if now.phase == "clips" else PREPROCESSING["clips"][0])
        if now.fraction is None:
            return self._slowly(STARTING, GENERATING) if self.preprocesses else None
        done = begin + (ENDING - begin) * now.fraction
        return self._slowly(done, 1.0) if now.fraction == 1 else done

    def _slowly(self, at: float, towards: float) -> float:
        """Between two numbers, by the time since the last message."""
        age = max((datetime.now(UTC) - self.at).total_seconds(), 0.0)
        return at + (towards - at) * age / (age + SLOW_SECONDS)


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
