"""Clips of one job: placed where they are ready, made where the job brings a driving video and a picture."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg

from wan_orchestration.defs import retries as launching
from wan_orchestration.defs.metadata import picture
from wan_orchestration.files import sha256
from wan_orchestration.jobs.clips import Clips, check_clips, clip_names, place_clips
from wan_orchestration.jobs.folder import Job
from wan_orchestration.launch.launcher import Launcher
from wan_orchestration.protocol.messages import Notice, PreprocessRequest, PreprocessResult
from wan_orchestration.settings.environment import environment
from wan_orchestration.settings.generate import Mode
from wan_orchestration.weights import hub


@dataclass(frozen=True)
class Made:
    """Clips in their place."""

    clips: Clips
    version: str
    metadata: dict[str, Any]


def make_clips(context: dg.AssetExecutionContext, launcher: Launcher, job: Job, given: dict[str, Any]) -> Made:
    """Clips in DATA_ROOT/clips/<job>; `given` are fields of PreprocessSettings that win over the job's.

    Raises:
        BadInput: the job's inputs or settings cannot be used.
        dg.Failure: anything else that went wrong.
    """
    from wan_orchestration.quality.preview import contact_sheet  # noqa: PLC0415 (OpenCV, PyAV: only a run needs them)

    env = environment()
    folder = env.clips_root / job.key
    if job.kind == "clips":
        settings = job.generate_settings(mode=given.get("mode"))
        clips = place_clips(job.folder, folder, settings.mode, settings.refert_num)
        for notice in clips.notices:
            context.log.warning(notice)
        shown = {
            "contact_sheet": picture(contact_sheet(clips), "contact sheet"),
            "warnings": notices_table([Notice(text=notice) for notice in clips.notices]),
        }
        return Made(clips, clips_version(folder, clips.mode), shown | facts(clips))
    assert env.models_root is not None
    request = PreprocessRequest(
        job_id=job.key,
        driving=job.inputs["driving"],
        reference=job.inputs["reference"],
        output=folder,
        settings=job.preprocess_settings(**given),
        snapshot=hub.local_snapshot(env),
        models_root=env.models_root,
    )
    result = launching.preprocess(context, launcher, request)
    clips = check_clips(folder, result.mode)
    return Made(clips, clips_version(folder, clips.mode), facts(clips) | making_facts(result))


def clips_version(folder: Path, mode: Mode) -> str:
    """SHA-256 over the names and contents of a mode's clips, so that equal clips made anew leave a video fresh."""
    digest = hashlib.sha256()
    for name in sorted(clip_names(mode).values()):
        digest.update(f"{name}\0{sha256(folder / name)}\n".encode())
    return digest.hexdigest()


def facts(clips: Clips) -> dict[str, Any]:
    """Clips as Dagster shows them."""
    return {
        "mode": clips.mode,
        "frames": clips.pose.frames,
        "fps": float(clips.pose.fps),
        "size": f"{clips.pose.width}x{clips.pose.height}",
        "duration": clips.pose.duration,
        "audio": clips.sound.track is not None,
        "path": dg.MetadataValue.path(clips.folder),
    }


def making_facts(result: PreprocessResult) -> dict[str, Any]:
    """How clips were made, as Dagster shows it."""
    return {
        "contact_sheet": picture(result.contact_sheet, "contact sheet"),
        "estimator": result.estimator,
        "retarget": result.retarget,
        **({"masks": result.masks} if result.masks else {}),
        "person_found": round(result.person_found / result.frames, 4),
        "face_found": round(result.face_found / result.frames, 4),
        "warnings": notices_table(result.warnings),
        **{f"seconds_{phase}": round(seconds, 2) for phase, seconds in result.seconds.items()},
        "peak_memory_gb": round(result.peak_memory_bytes / 1e9, 2),
        "settings": result.settings.model_dump(mode="json"),
    }


def notices_table(notices: Iterable[Notice]) -> dg.TableMetadataValue:
    """A row for each notice."""
    rows = [
        dg.TableRecord({"what": notice.text, "frames": ", ".join(_range(*part) for part in notice.frames)})
        for notice in notices
    ]
    columns = [dg.TableColumn("what", "string"), dg.TableColumn("frames", "string")]
    return dg.MetadataValue.table(rows, schema=dg.TableSchema(columns))


def _range(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"
