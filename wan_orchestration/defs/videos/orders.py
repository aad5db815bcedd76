"""What a job's video is to be made of, and what came of it."""

import hashlib
import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import dagster as dg

from wan_orchestration.defs.clips.making import clips_version, notices_table
from wan_orchestration.defs.metadata import animation, poster
from wan_orchestration.errors import validate
from wan_orchestration.jobs.clips import check_clips
from wan_orchestration.jobs.folder import Job
from wan_orchestration.protocol.messages import Notice, Result, Task
from wan_orchestration.settings.environment import environment
from wan_orchestration.settings.service import ClientSettings
from wan_orchestration.weights.snapshot import Snapshot


@dataclass(frozen=True)
class Order:
    """One video to generate."""

    job: Job
    task: Task
    clips_version: str
    version: str
    """Of the video, by all that was asked for: precision and bands that the machine chooses are not part of it."""

    @classmethod
    def place(cls, job: Job, given: dict[str, Any], snapshot: Snapshot, created_at: datetime) -> "Order":
        """`given` are fields of GenerateSettings that win over the job's. BadInput: clips or settings are no good."""
        env = environment()
        settings = job.generate_settings(**given)
        folder = env.clips_root / job.key
        clips = check_clips(folder, settings.mode, settings.refert_num)
        version = clips_version(folder, settings.mode)
        task = Task(
            job_id=job.key,
            clips=clips,
            output=env.videos_root / job.key,
            settings=settings,
            created_at=created_at,
        )
        ingredients = f"{version} {snapshot.fingerprint} {json.dumps(settings.decisive(), sort_keys=True)}"
        return cls(job, task, version, hashlib.sha256(ingredients.encode()).hexdigest())


def facts(result: Result) -> dict[str, Any]:
    """A result as Dagster shows it; numbers are plotted over the runs of a job. What is not known is left out."""
    video, quality = result.video_path, result.quality
    preview = video and video.with_name("preview.webp")
    clips = result.made_clips
    facts = {
        "preview": animation(preview) if preview and preview.is_file() else None,
        "poster": poster(video.with_name("poster.jpg")) if video else None,
        "play": video and dg.MetadataValue.url(f"{api_url()}/animate/jobs/{result.job_id}/media"),
        "video": video,
        "frames": result.frames,
        "fps": result.fps,
        "size": result.width and f"{result.width}x{result.height}",
        "clips": result.clips,
        "resumed_clips": result.resumed_clips,
        "restarted": result.restarted,
        **{f"seconds_{phase}": round(seconds, 3) for phase, seconds in result.seconds.model_dump().items()},
        "peak_memory_gb": result.peak_memory_bytes and round(result.peak_memory_bytes / 1e9, 2),
        "seconds_per_step": clips and round(sum(clip.seconds_per_step for clip in clips) / len(clips), 3),
        "clips_table": clips and clips_table(result),
        "colour_drift": quality and max(quality.colour_drift, default=None),
        "seam": quality and quality.seam,
        "pose_similarity": quality and quality.pose_similarity,
        "identity": quality and quality.identity,
        "device": result.device,
        "dtype": result.dtype,
        "attention": result.attention,
        "tf32": result.tf32,
        "compiled": result.compiled,
        "compile_error": result.compile_error,
        "placement": result.placement,
        "warnings": notices_table([Notice(text=notice) for notice in result.notices]) if result.notices else None,
        "settings": result.settings and result.settings.model_dump(mode="json"),
        "snapshot": result.snapshot and result.snapshot.model_dump(mode="json"),
    }
    return {name: value for name, value in facts.items() if value not in (None, [])}


def clips_table(result: Result) -> dg.TableMetadataValue:
    """A row for each clip of the generation."""
    drift = result.quality.colour_drift if result.quality else []
    columns = {"clip": "int", "frames": "int", "seconds": "float", "seconds_per_step": "float", "colour_drift": "float"}
    rows = [
        dg.TableRecord(
            {
                "clip": number,
                "frames": clip.frames,
                "seconds": round(clip.seconds, 2),
                "seconds_per_step": round(clip.seconds_per_step, 3),
                "colour_drift": drift[number - 1] if drift else None,
            }
        )
        for number, clip in enumerate(result.made_clips, 1)
    ]
    schema = dg.TableSchema([dg.TableColumn(name, kind) for name, kind in columns.items()])
    return dg.MetadataValue.table(rows, schema)


def api_url() -> str:
    """Where the HTTP API plays videos, if it is served."""
    return validate(ClientSettings, {}).url.rstrip("/")
