"""The drop folder's sensor: starts a run for each new or changed job folder."""

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import dagster as dg

from wan_orchestration.defs.jobs.assets import observe, rejected
from wan_orchestration.defs.jobs.cursor import DropFolderCursor, KnownFolder
from wan_orchestration.defs.jobs.loose_files import loose_files
from wan_orchestration.defs.jobs.review import REVIEW, WANTED
from wan_orchestration.defs.jobs.run_requests import (
    already_run,
    group,
    in_progress,
    make_clips,
    make_videos,
    request_tags,
)
from wan_orchestration.defs.jobs.scan import FolderState, scan
from wan_orchestration.defs.jobs.versions import JobVersion
from wan_orchestration.defs.partitions import jobs, without_output
from wan_orchestration.defs.weights.needed import Snapshots
from wan_orchestration.errors import BadInput, validate
from wan_orchestration.families.choose import configured
from wan_orchestration.jobs.folder import Job
from wan_orchestration.settings.environment import environment
from wan_orchestration.settings.generate import GenerateSettings
from wan_orchestration.settings.preprocess import PreprocessSettings
from wan_orchestration.settings.service import DropSettings
from wan_orchestration.settings.variables import with_variables

# Limits of one tick, so that it takes a second or two, however many folders are new. Later ticks do the rest. Dagster
# needs 6 ms to add a partition, about as long to record an event, and 20 ms to plan a job of a run.
READING_SECONDS = 0.3
"""Time to read contents."""
OBSERVED, REGISTERED = 50, 50
"""Most changed jobs that are observed, and most new jobs that become partitions."""
CONSIDERED = 500
"""Most jobs whose earlier runs are looked up."""
STARTED = 8
"""Most jobs that are started, unless the first run alone has more."""
LISTED = 20
"""Most unusable folders and files that the tick's message names."""


@dataclass
class Reading:
    """What a tick found in new and changed folders."""

    settled: set[str] = field(default_factory=set)
    """Folders into which nothing is being copied."""
    unread: int = 0
    """Folders left to the next tick."""
    observations: list[dg.AssetObservation] = field(default_factory=list)


@dataclass
class RunsToStart:
    """The runs of this tick."""

    waiting: list[JobVersion]
    """Jobs that were not run for their present content."""
    runs: list[list[JobVersion]]
    obstacle: str | None
    """Why some or all jobs cannot be run yet; None if nothing prevents it."""


@dg.definitions
def drop_folder_sensor() -> dg.Definitions:
    sensor = dg.sensor(
        jobs=[make_videos, make_clips],
        # The daemon looks every 5 s. Without a second less, it would find every other tick some milliseconds too early.
        minimum_interval_seconds=max(validate(DropSettings, {}).interval_seconds - 1, 1),
        default_status=dg.DefaultSensorStatus.RUNNING,
    )
    return dg.Definitions(sensors=[sensor(drop_folder)])


def drop_folder(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
    """Makes each complete job folder a partition and starts a run for it, and another when its content changes.

    The run of a job with `review: true` only makes the clips, for somebody to look at.

    Lists folders that cannot be used, and files beside them, in the tick's message and in `rejected_folders`.
    Removes the partition of a folder that is gone, unless there is output for it.
    """
    settings, instance, root = validate(DropSettings, {}), context.instance, environment().jobs_root
    if not root.is_dir():
        return dg.SkipReason(f"{root} does not exist yet")
    # Read before the folders: otherwise a job that is registered in between would seem to have no folder.
    registered = instance.get_dynamic_partitions("jobs")
    has_partition = set(registered)
    folders = {folder.path.name: folder for folder in scan(root)}
    cursor = DropFolderCursor.read(instance)
    before = DropFolderCursor.read(instance)
    reading = read(folders, cursor, has_partition, settings)
    usable = sorted((known.job for known in cursor.folders.values() if known.job), key=lambda job: job.urgency)
    new = [job.key for job in usable if job.key not in has_partition][:REGISTERED]
    waiting = _not_run(instance, [job for job in usable if job.key in reading.settled], cursor)
    gone = without_output(instance, [key for key in registered if key not in folders])
    busy = in_progress(instance, registered) if gone or waiting else set()
    gone = [key for key in gone if key not in busy and not (root / key).is_dir()]
    starts = _runs_to_start(waiting, busy, [key for key in registered if key not in gone] + new, settings)
    if cursor != before:
        cursor.write(instance)

    reasons = {name: known.reason for name, known in sorted(cursor.folders.items()) if known.reason}
    reasons |= loose_files(root, time.time() - settings.settle_seconds)
    table_hash = _hash(repr(reasons)) if reasons else ""
    text = "\n".join(_report(folders, reading, new, gone, starts, reasons))
    context.log.info(text)
    changes = jobs.build_delete_request(gone), jobs.build_add_request(new)
    return dg.SensorResult(
        run_requests=[_request(run) for run in starts.runs],
        dynamic_partitions_requests=[change for change in changes if change.partition_keys],
        asset_events=[*reading.observations, *([rejected(reasons)] if table_hash != (context.cursor or "") else [])],
        cursor=table_hash,
        skip_reason=None if starts.runs else text,
    )


def read(
    folders: Mapping[str, FolderState], cursor: DropFolderCursor, registered: set[str], settings: DropSettings
) -> Reading:
    """Updates the cursor. Opens the settled folders that are new or changed."""
    reading, now, started = Reading(), time.time(), time.monotonic()
    for name in cursor.folders.keys() - folders.keys():
        del cursor.folders[name]
    env = environment()
    weights = configured(env.checkpoint_dir, env.model_id, env.download_folder).name
    defaults = _hash(f"{with_variables(GenerateSettings, {})!r}{with_variables(PreprocessSettings, {})!r}{weights}")
    for name, folder in folders.items():
        if not folder.settled(now, settings.settle_seconds):
            continue
        reading.settled.add(name)
        known = cursor.folders.get(name)
        if known and (known.signature, known.defaults) == (folder.signature, defaults):
            continue
        if time.monotonic() - started > READING_SECONDS or len(reading.observations) >= 2 * OBSERVED:
            reading.unread += 1
            continue
        try:
            job, cursor.folders[name] = _opened(folder, defaults, known)
        except (BadInput, OSError) as error:
            cursor.folders[name] = KnownFolder(folder.signature, defaults, reason=str(error))
            continue
        # A new job is observed by its first run. Others are observed here, so that the UI shows stale videos at once.
        version = cursor.folders[name].job
        if version and name in registered:
            reading.observations += observe(job, version)
    return reading


def _opened(folder: FolderState, defaults: str, known: KnownFolder | None) -> tuple[Job, KnownFolder]:
    """Opens a folder. If only the defaults have changed, the inputs are not read again. BadInput."""
    job = Job.open(folder.path)
    unchanged = known is not None and known.signature == folder.signature
    fingerprint = (known.fingerprint if known and unchanged else "") or job.fingerprint()
    version = JobVersion.of(job, fingerprint)
    was_run = bool(known and known.was_run and known.job and known.job.content == version.content)
    return job, KnownFolder(folder.signature, defaults, fingerprint, version, was_run=was_run)


def _not_run(instance: dg.DagsterInstance, usable: Sequence[JobVersion], cursor: DropFolderCursor) -> list[JobVersion]:
    """The jobs without a run for their present content, the most urgent first; checks at most `CONSIDERED` jobs."""
    candidates = [job for job in usable if not cursor.folders[job.key].was_run][:CONSIDERED]
    for key in already_run(instance, candidates):
        cursor.folders[key].was_run = True
    return [job for job in candidates if not cursor.folders[job.key].was_run]


def _runs_to_start(
    waiting: list[JobVersion], busy: set[str], partitions: Sequence[str], settings: DropSettings
) -> RunsToStart:
    """Groups waiting jobs into runs, within a tick's limits. A job with an unfinished run keeps waiting.

    Each job with `review` gets a run of its own, because a run makes the clips of one job.
    """
    snapshots = Snapshots()
    reasons = {job.key: _obstacle(settings, snapshots, job) for job in waiting}
    free = [job for job in waiting if job.key not in busy and not reasons[job.key]]
    runs = group((job for job in free if not job.review), partitions, settings.max_jobs_per_run)
    runs += group((job for job in free if job.review), partitions, 1)
    runs.sort(key=lambda run: min(job.urgency for job in run))
    sums = accumulate(map(len, runs))
    few = [run for run, total in zip(runs, sums, strict=True) if total <= STARTED] or runs[:1]
    obstacles = dict.fromkeys(reason for reason in reasons.values() if reason)
    return RunsToStart(waiting, few[: settings.max_runs_per_tick], "\n".join(obstacles) or None)


def _request(run: Sequence[JobVersion]) -> dg.RunRequest:
    """The request for a run, which makes videos, or the clips of one job with `review`."""
    if run[0].review:
        return dg.RunRequest(job_name=make_clips.name, tags={**request_tags(run), REVIEW: WANTED})
    return dg.RunRequest(job_name=make_videos.name, tags=request_tags(run))


def _obstacle(settings: DropSettings, snapshots: Snapshots, job: JobVersion) -> str | None:
    """Why a job cannot be run."""
    if not settings.run:
        return "WAN_DROP_RUN is off"
    try:
        snapshots.of(job.model, job.variant)
    except BadInput as error:
        # A download of 50 GB must not begin because a UI was opened.
        return str(error)
    return None


def _report(
    folders: Mapping[str, FolderState],
    reading: Reading,
    new: Sequence[str],
    gone: Sequence[str],
    starts: RunsToStart,
    reasons: Mapping[str, str],
) -> Iterator[str]:
    """The tick's message, line by line."""
    yield (
        f"{len(folders)} job folders, {len(folders) - len(reading.settled)} of them being copied, {len(new)} new, "
        f"{reading.unread} to be read in the next tick; {len(gone)} partitions without folder or output removed"
    )
    yield f"{len(starts.waiting)} jobs to run, {sum(map(len, starts.runs))} of them now in {len(starts.runs)} runs"
    if starts.obstacle:
        yield f"waiting: {starts.obstacle}"
    yield from list(reasons.values())[:LISTED]
    if len(reasons) > LISTED:
        yield f"and {len(reasons) - LISTED} more, see rejected_folders"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
