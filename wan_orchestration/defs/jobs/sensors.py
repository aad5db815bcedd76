"""Keeps Dagster's view of the drop folder up to date."""

import hashlib
import json
from pathlib import Path

import dagster as dg

from wan_orchestration.defs.jobs.assets import observe
from wan_orchestration.defs.partitions import jobs
from wan_orchestration.errors import BadInput, validate
from wan_orchestration.job import Job
from wan_orchestration.settings import GenerateSettings, PreprocessSettings, environment


@dg.sensor(minimum_interval_seconds=15, default_status=dg.DefaultSensorStatus.RUNNING)
def drop_folder(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
    """Makes each job folder a partition, and notes what it holds, so that a video shows as stale when that changes."""
    root = environment().jobs_root
    if not root.is_dir():
        return dg.SkipReason(f"{root} does not exist yet")
    defaults = f"{validate(GenerateSettings, {})!r}{validate(PreprocessSettings, {})!r}"
    seen: dict[str, str] = json.loads(context.cursor or "{}")
    now: dict[str, str] = {}
    keys, observations, unusable = [], [], []
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        now[folder.name] = _state(folder, defaults)
        if now[folder.name] == seen.get(folder.name):
            continue
        try:
            job = Job.open(folder)
            observations += observe(job)
            keys.append(job.key)
        except BadInput as error:
            unusable.append(str(error))
    new = set(keys) - set(context.instance.get_dynamic_partitions("jobs"))
    return dg.SensorResult(
        dynamic_partitions_requests=[jobs.build_add_request(sorted(new))] if new else [],
        asset_events=observations,
        cursor=json.dumps(now),
        skip_reason="\n".join(
            [f"{len(now)} job folders, {len(new)} new, {len(keys) - len(new)} to look at again", *unusable]
        ),
    )


def _state(folder: Path, defaults: str) -> str:
    """Changes with the folder's files (by size and time, which is cheap to look at) and with the default settings."""
    digest = hashlib.sha256(defaults.encode())
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        stat = path.stat()
        digest.update(f"{path.relative_to(folder)} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]
