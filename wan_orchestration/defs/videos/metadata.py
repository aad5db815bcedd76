"""A finished video as Dagster shows it."""

from typing import Any

import dagster as dg

from wan_orchestration.defs.clips.metadata import notices_table
from wan_orchestration.defs.metadata import animation, poster
from wan_orchestration.errors import validate
from wan_orchestration.protocol.messages import Notice, Result, Take
from wan_orchestration.settings.service import ClientSettings


def video_metadata(result: Result) -> dict[str, Any]:
    """The known values of a result. Dagster plots the numbers over a job's runs."""
    video, quality, segments = result.video_path, result.quality, result.made_segments
    model, variant = result.settings.made_with if result.settings else (None, None)
    preview = video and video.with_name("preview.webp")
    metadata = {
        "preview": animation(preview.read_bytes()) if preview and preview.is_file() else None,
        "poster": poster(video.with_name("poster.jpg")) if video else None,
        "play": video and dg.MetadataValue.url(f"{api_url()}/animate/jobs/{result.job_id}/media"),
        "video": video,
        "model": model,
        "variant": variant,
        "frames": result.frames,
        "fps": result.fps,
        "size": result.width and f"{result.width}x{result.height}",
        "segments": result.segments,
        "resumed_segments": result.resumed_segments,
        "restarted": result.restarted,
        "warm": result.warm,
        **{f"seconds_{phase}": round(seconds, 3) for phase, seconds in result.seconds.model_dump().items()},
        "peak_memory_gb": result.peak_memory_bytes and round(result.peak_memory_bytes / 1e9, 2),
        "seconds_per_step": segments and round(sum(one.seconds_per_step for one in segments) / len(segments), 3),
        "segments_table": segments and segments_table(result),
        "retakes": segments and sum(max(len(one.takes) - 1, 0) for one in segments),
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
        "warnings": notices_table(Notice(text=notice) for notice in result.notices) if result.notices else None,
        "settings": result.settings and result.settings.model_dump(mode="json"),
        "snapshot": result.snapshot and result.snapshot.model_dump(mode="json"),
    }
    return {name: value for name, value in metadata.items() if value not in (None, [])}


def segments_table(result: Result) -> dg.TableMetadataValue:
    """A row for each take of each segment; one row for a segment of a version that did not measure them."""
    drift = result.quality.colour_drift if result.quality else []
    # Of several characters, only the segments of the last one are in the video.
    unseen = len(result.made_segments) - len(drift)
    columns = {
        "segment": "int",
        "take": "int",
        "kept": "bool",
        "misses": "string",
        "frames": "int",
        "seconds": "float",
        "seconds_per_step": "float",
        "colour_drift": "float",
        "seam": "float",
        "pose_similarity": "float",
        "identity": "float",
    }
    rows = []
    for number, segment in enumerate(result.made_segments, 1):
        whole = {
            "segment": number,
            "take": 1,
            "kept": True,
            "misses": "",
            "frames": segment.frames,
            "seconds": round(segment.seconds, 2),
            "seconds_per_step": round(segment.seconds_per_step, 3),
            "colour_drift": drift[number - 1 - unseen] if drift and number > unseen else None,
        }
        rows += [whole | _of_take(take) for take in segment.takes] or [whole]
    schema = dg.TableSchema([dg.TableColumn(name, kind) for name, kind in columns.items()])
    return dg.MetadataValue.table([dg.TableRecord({name: row.get(name) for name in columns}) for row in rows], schema)


def _of_take(take: Take) -> dict[str, Any]:
    measures = take.measures.model_dump(include={"colour_drift", "seam", "pose_similarity", "identity"})
    known = {"take": take.take + 1, "kept": take.kept, "misses": take.missed, "seconds": round(take.seconds, 2)}
    return known | {name: value for name, value in measures.items() if value is not None}


def api_url() -> str:
    """URL of the HTTP API, which plays videos while it is served."""
    return validate(ClientSettings, {}).url.rstrip("/")
