"""The rows of the catalog: each job's settings, state, result and cost."""

from collections.abc import Iterator, Sequence
from typing import Any

import dagster as dg

from wan_orchestration.defs.failures import reason
from wan_orchestration.defs.jobs.run_requests import JOB, UNFINISHED, jobs_of, makes_only_clips
from wan_orchestration.errors import BadInput
from wan_orchestration.jobs.folder import Job
from wan_orchestration.protocol.messages import Result
from wan_orchestration.settings.environment import environment

COLUMNS = {
    "job": "string",
    "state": "string",
    "model": "string",
    "mode": "string",
    "priority": "Int64",
    "run": "string",
    "finished_at": "datetime64[ns, UTC]",
    "frames": "Int64",
    "fps": "Float64",
    "duration": "Float64",
    "width": "Int64",
    "height": "Int64",
    "clips": "Int64",
    "sampling_steps": "Int64",
    "seed": "Int64",
    "seconds": "Float64",
    "gpu_seconds": "Float64",
    "device": "string",
    "snapshot": "string",
    "colour_drift": "Float64",
    "pose_similarity": "Float64",
    "identity": "Float64",
    "video": "string",
    "error": "string",
}
"""Names and pandas types. `duration` is the video's in seconds, `seconds` the time that making it took, `gpu_seconds`
that time multiplied by the number of devices; all are missing without a video."""


def rows(instance: dg.DagsterInstance) -> Iterator[dict[str, Any]]:
    """Rows in the order of registration.

    States: queued, running, ready (its clips can be looked at), succeeded, failed, cancelled, waiting (never run).
    """
    env, registered = environment(), instance.get_dynamic_partitions("jobs")
    last = _last_runs(instance, registered)
    for key in registered:
        run, result = last.get(key), Result.read(env.videos_root / key / "result.json")
        row: dict[str, Any] = dict.fromkeys(COLUMNS) | {"job": key, "state": _state(instance, run, result)}
        if run is not None:
            row |= {"run": run.run_id, "error": _first_line(instance, run) if row["state"] == "failed" else None}
        try:
            job = Job.open(env.jobs_root / key)
            settings = job.generate_settings()
            row |= {"model": settings.family.name, "mode": settings.mode, "priority": job.file.priority}
        except BadInput as error:
            row["error"] = row["error"] or str(error)
        yield row | (_made(result, run) if result else {})


def _made(result: Result, run: dg.DagsterRun | None) -> dict[str, Any]:
    settings, quality, snapshot = result.settings, result.quality, result.snapshot
    devices = len(run.tags["wan/devices"].split(",")) if run and "wan/devices" in run.tags else 1
    return {
        **({"model": settings.family.name} if settings else {}),
        "finished_at": result.finished_at,
        "frames": result.frames,
        "fps": result.fps,
        "duration": result.frames / result.fps if result.frames and result.fps else None,
        "width": result.width,
        "height": result.height,
        "clips": result.segments,
        "sampling_steps": settings and settings.sampling_steps,
        "seed": settings and settings.seed,
        "seconds": round(result.seconds.total, 2),
        "gpu_seconds": round(result.seconds.total * devices, 2),
        "device": result.device,
        "snapshot": snapshot and (snapshot.revision or str(snapshot.path)),
        "colour_drift": quality and max(quality.colour_drift, default=None),
        "pose_similarity": quality and quality.pose_similarity,
        "identity": quality and quality.identity,
        "video": result.video_path and str(result.video_path),
    }


def _last_runs(instance: dg.DagsterInstance, registered: Sequence[str]) -> dict[str, dg.DagsterRun]:
    """Each job's latest run; reads the runs in pages, the latest first."""
    found: dict[str, dg.DagsterRun] = {}
    cursor = None
    while page := instance.get_runs(cursor=cursor, limit=500):
        for run in page:
            named = [tag.removeprefix(JOB) for tag in run.tags if tag.startswith(JOB)]
            for key in named or jobs_of(run, registered):
                found.setdefault(key, run)
        cursor = page[-1].run_id
        if found.keys() >= set(registered):
            break
    return found


def _state(instance: dg.DagsterInstance, run: dg.DagsterRun | None, result: Result | None) -> str:
    if run is None:
        return "succeeded" if result else "waiting"
    if run.status in UNFINISHED:
        return "running" if run.status in (dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING) else "queued"
    if run.status == dg.DagsterRunStatus.CANCELED:
        return "cancelled"
    if run.status == dg.DagsterRunStatus.SUCCESS:
        return "ready" if makes_only_clips(run) else "succeeded"
    # A failed run over several jobs may have made this one.
    made_by_it = result is not None and result.created_at.timestamp() >= (_created(instance, run) or 0)
    return "succeeded" if made_by_it else "failed"


def _created(instance: dg.DagsterInstance, run: dg.DagsterRun) -> float | None:
    record = instance.get_run_record_by_id(run.run_id)
    return record.create_timestamp.timestamp() if record else None


def _first_line(instance: dg.DagsterInstance, run: dg.DagsterRun) -> str:
    return (reason(instance, run.run_id) or "the run's process ended").split("\n")[0]
