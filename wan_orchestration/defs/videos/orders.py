"""What a job's video is to be made of, and what came of it."""

import hashlib
import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from wan_orchestration.defs.clips.making import clips_version
from wan_orchestration.defs.previews import poster
from wan_orchestration.job import Job, check_clips
from wan_orchestration.messages import Result, Task
from wan_orchestration.settings import GenerateSettings, environment
from wan_orchestration.snapshot import Snapshot


@dataclass(frozen=True)
class Order:
    """One video to generate."""

    job: Job
    task: Task
    clips_version: str
    version: str
    """Of the video, by all that decides what it shows."""

    @classmethod
    def place(cls, job: Job, given: dict[str, Any], snapshot: Snapshot, created_at: datetime) -> "Order":
        """`given` are fields of GenerateSettings that win over the job's. BadInput: clips or settings are no good."""
        env = environment()
        settings = job.generate_settings(**given)
        folder = env.clips_root / job.key
        check_clips(folder, settings.mode, settings.refert_num)
        clips = clips_version(folder, settings.mode)
        task = Task(
            job_id=job.key,
            clips=folder,
            output=env.videos_root / job.key,
            settings=settings,
            created_at=created_at,
        )
        ingredients = f"{clips} {snapshot.fingerprint} {decisive(settings)}"
        return cls(job, task, clips, hashlib.sha256(ingredients.encode()).hexdigest())


def decisive(settings: GenerateSettings) -> str:
    """The settings that decide what a video shows, as JSON; where it was computed is not among them."""
    return json.dumps(settings.decisive(), sort_keys=True)


def facts(result: Result) -> dict[str, Any]:
    """A result as Dagster shows it; numbers are plotted over the runs of a job. What is not known is left out."""
    facts = {
        "poster": poster(result.video_path.with_name("poster.jpg")) if result.video_path else None,
        "video": result.video_path,
        "frames": result.frames,
        "fps": result.fps,
        "size": result.width and f"{result.width}x{result.height}",
        "clips": result.clips,
        "resumed_clips": result.resumed_clips,
        **{f"seconds_{phase}": round(seconds, 3) for phase, seconds in result.seconds.model_dump().items()},
        "peak_memory_gb": result.peak_memory_bytes and round(result.peak_memory_bytes / 1e9, 2),
        "device": result.device,
        "dtype": result.dtype,
        "attention": result.attention,
        "compiled": result.compiled,
        "placement": result.placement,
        "settings": result.settings and result.settings.model_dump(mode="json"),
        "snapshot": result.snapshot and result.snapshot.model_dump(mode="json"),
    }
    return {name: value for name, value in facts.items() if value is not None}
