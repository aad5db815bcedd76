"""Describes a job for clients: status, progress, settings, links, from its newest run and its files."""

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import chain, count, takewhile
from pathlib import Path
from typing import Any

import dagster as dg

from wan_orchestration.api import run_log
from wan_orchestration.api.clips import ClipsFolder, clips_link
from wan_orchestration.api.models import FINISHED, NOT_FOR_CLIENTS, OF_BOTH, JobInfo, JobProgress, Links, Status, Video
from wan_orchestration.api.uploads import PICTURES
from wan_orchestration.defs.freshness import latest
from wan_orchestration.defs.jobs.review import DONE, REVIEW
from wan_orchestration.defs.jobs.run_requests import CLIPS, VIDEO, job_tag, makes_only_clips
from wan_orchestration.errors import BadInput
from wan_orchestration.jobs.folder import Job
from wan_orchestration.launch.dagster_internals import WILL_RETRY_TAG
from wan_orchestration.protocol import progress
from wan_orchestration.protocol.messages import PreprocessProgress, Result
from wan_orchestration.protocol.progress import RunProgress
from wan_orchestration.quality.clips_quality import ClipsQuality
from wan_orchestration.settings.environment import Environment

PATH = "/animate/jobs"

QUEUED = [dg.DagsterRunStatus.QUEUED]

SETTINGS = "wan/settings"
"""Tag of a run that makes only clips, or the video of such clips: the settings of the requests, as JSON by `generate`
and `preprocess`. The run's own config cannot hold both. A long text is continued in `wan/settings-2` and so on."""

TAG_BYTES = 2000
"""Longest part of the settings in one tag. Dagster indexes tags, and Postgres indexes at most 2.7 kB."""

MAX_QUEUED = 2000
"""How many queued runs are read to find a run's position."""

STATUSES: dict[dg.DagsterRunStatus, Status] = {
    dg.DagsterRunStatus.NOT_STARTED: "queued",
    dg.DagsterRunStatus.QUEUED: "queued",
    dg.DagsterRunStatus.MANAGED: "queued",
    dg.DagsterRunStatus.STARTING: "running",
    dg.DagsterRunStatus.STARTED: "running",
    dg.DagsterRunStatus.CANCELING: "running",
    dg.DagsterRunStatus.SUCCESS: "succeeded",
    dg.DagsterRunStatus.FAILURE: "failed",
    dg.DagsterRunStatus.CANCELED: "cancelled",
}


UNDECIDED_SECONDS = 5.0
"""A run that failed without being tagged for so long is not retried."""


def job_status(instance: dg.DagsterInstance, key: str, record: dg.RunRecord) -> Status:
    """The status of one job of a run."""
    run = record.dagster_run
    if run.is_complete_and_waiting_to_retry:
        return "queued"
    if _retry_is_undecided(instance, record):
        return "running"
    status = STATUSES[run.status]
    if status == "succeeded" and makes_only_clips(run):
        return "ready"
    # In a run of several jobs, those with a video have succeeded, even if the run fails later.
    if run.tags.get("dagster/partition") != key and status in ("running", "failed", "cancelled"):
        videos = instance.fetch_materializations(dg.AssetRecordsFilter(VIDEO, [key]), limit=1).records
        if videos and videos[0].run_id == run.run_id:
            return "succeeded"
    return status


def _retry_is_undecided(instance: dg.DagsterInstance, record: dg.RunRecord) -> bool:
    """Whether a run has just failed, and Dagster has not tagged it yet: that happens a moment after the failure."""
    run = record.dagster_run
    failed = run.status is dg.DagsterRunStatus.FAILURE and WILL_RETRY_TAG not in run.tags
    return failed and instance.run_retries_enabled and time.time() - (record.end_time or 0) < UNDECIDED_SECONDS


def job_info(instance: dg.DagsterInstance, env: Environment, key: str, record: dg.RunRecord) -> JobInfo:
    """A job in the state of its newest run, which is `record`."""
    run, status = record.dagster_run, job_status(instance, key, record)
    # Each retry is a new run; the job was created with the first run.
    first = run.root_run_id and instance.get_run_record_by_id(run.root_run_id)
    folder = open_folder(env, key)
    model, variant = _model(folder, run)
    return JobInfo(
        job_id=key,
        status=status,
        cancelling=run.status is dg.DagsterRunStatus.CANCELING,
        created_at=(first or record).create_timestamp.replace(tzinfo=UTC),
        started_at=_time(record.start_time) if status != "queued" else None,
        finished_at=_time(record.end_time) if status in FINISHED else None,
        queue_position=_queue_position(instance, record) if status == "queued" else None,
        priority=priority(run),
        review=makes_only_clips(run),
        progress=_progress(env, key, record) if status == "running" else None,
        error=run_log.failure_reason(instance, key, run.run_id) if status == "failed" else None,
        settings=_settings(folder, run),
        model=model,
        variant=variant,
        characters=[one.person for one in folder.file.characters] if folder else [],
        video=_video(env, key) if status == "succeeded" else None,
        run_id=run.run_id,
        links=_links(instance, env, key, record, status, inputs_for_clients(folder)),
    )


def open_folder(env: Environment, key: str) -> Job | None:
    """The job's folder; None if it cannot be used any more."""
    try:
        return Job.open(env.jobs_root / key)
    except BadInput:
        return None


def inputs_for_clients(folder: Job | None) -> dict[str, Path]:
    """The inputs that clients may see: `driving`, `reference`, `reference_2`, ... Leaves out symbolic links."""
    names = {"src_pose": "driving", "src_ref": "reference"} | {name: name for name in ("driving", *PICTURES)}
    inputs = folder.inputs.items() if folder else ()
    return {names[name]: path for name, path in inputs if name in names and not path.is_symlink()}


def can_start(instance: dg.DagsterInstance, env: Environment, key: str, status: Status, run: dg.DagsterRun) -> bool:
    """Whether the video of the job's clips can be started: after a look at them, or after a run that failed.

    `run` is the newest. If it was to make other clips, the earlier ones can be used.
    """
    if status not in ("failed", "cancelled"):
        return status == "ready"
    if run.tags.get(REVIEW) == DONE:
        return True
    return makes_only_clips(run) and _has_clips_of_earlier_look(instance, env, key, run)


def _has_clips_of_earlier_look(instance: dg.DagsterInstance, env: Environment, key: str, run: dg.DagsterRun) -> bool:
    """Whether the clips are those of an earlier run for a look, whole, and made of the same folder as in this run."""
    clips, folder = latest(instance, CLIPS.to_user_string(), key), ClipsFolder.find(env, key, "failed")
    earlier = clips and instance.get_run_record_by_id(clips.run_id)
    if not folder or not earlier or not makes_only_clips(earlier.dagster_run):
        return False
    contents = {one.tags.get(job_tag(key)) for one in (earlier.dagster_run, run)}
    # The run that failed may have replaced the clips before. Measures are valid only for the files that were measured.
    is_earlier = folder.version / 1e6 <= (earlier.end_time or 0) and ClipsQuality.read(folder.path) is not None
    return is_earlier and len(contents - {None}) < 2


def has_video(instance: dg.DagsterInstance, key: str, record: dg.RunRecord, status: Status) -> bool:
    """Whether the newest run that was to make the job's video has made it. `record` is the newest of all runs."""
    if not makes_only_clips(record.dagster_run):
        return status == "succeeded"
    plan = instance.get_latest_planned_materialization_info(VIDEO, key)
    earlier = plan and instance.get_run_record_by_id(plan.run_id)
    return earlier is not None and job_status(instance, key, earlier) == "succeeded"


def _links(
    instance: dg.DagsterInstance,
    env: Environment,
    key: str,
    record: dg.RunRecord,
    status: Status,
    inputs: dict[str, Path],
) -> Links:
    job, outputs = f"{PATH}/{key}", env.videos_root / key
    done = has_video(instance, key, record, status)

    def output(file: str, name: str) -> str | None:
        return f"{job}/{name}" if done and (outputs / file).is_file() else None

    return Links(
        self=job,
        events=f"{job}/events",
        log=f"{job}/log",
        media=output("video.mp4", "media"),
        poster=output("poster.jpg", "poster"),
        preview=output("preview.webp", "preview"),
        reference=f"{job}/inputs/reference" if "reference" in inputs else None,
        driving=f"{job}/inputs/driving" if "driving" in inputs else None,
        clips=clips_link(env, key, status, f"{job}/clips"),
        start=f"{job}/start" if can_start(instance, env, key, status, record.dagster_run) else None,
    )


def _queue_position(instance: dg.DagsterInstance, record: dg.RunRecord) -> int:
    """1 plus the number of queued runs that are more urgent, or as urgent and older."""
    rank = (priority(record.dagster_run), -record.storage_id)
    queued = instance.get_run_records(dg.RunsFilter(statuses=QUEUED), limit=MAX_QUEUED)
    return 1 + sum((priority(other.dagster_run), -other.storage_id) > rank for other in queued)


def priority(run: dg.DagsterRun) -> int:
    try:
        return int(run.tags.get("dagster/priority", "0"))
    except ValueError:
        return 0


def _progress(env: Environment, key: str, record: dg.RunRecord) -> JobProgress:
    newest = progress.read(env.progress_root, key, record.dagster_run.run_id)
    if newest is None:
        updated_at = _time(record.start_time) or datetime.now(UTC)
        return JobProgress(phase="preparing", words="preparing", fraction=None, updated_at=updated_at)
    fraction = newest.fraction
    if fraction is not None and makes_only_clips(record.dagster_run):
        fraction = min(1.0, fraction / progress.STARTING)
    return _job_progress(newest, fraction)


def _job_progress(newest: RunProgress, fraction: float | None) -> JobProgress:
    message = newest.progress
    common = {
        "phase": message.phase,
        "words": message.words,
        "fraction": fraction,
        "updated_at": newest.at,
    }
    if isinstance(message, PreprocessProgress):
        return JobProgress(**common, frame=message.done, frames=message.total)
    return JobProgress(
        **common,
        clip=message.segment or None,
        clips=message.segments or None,
        step=message.step if message.segment else None,
        steps=message.steps or None,
        seconds_per_step=message.seconds_per_step,
        eta_seconds=message.eta_seconds,
    )


def _settings(folder: Job | None, run: dg.DagsterRun) -> dict[str, Any]:
    """The job's settings without the defaults: those of the request, over those of its `job.yaml`."""
    given = given_settings(run)
    generate, preprocess = given["generate"], given["preprocess"]
    if folder:
        top = folder.file.model_dump(include={*OF_BOTH, "variant"}, exclude_none=True)
        generate, preprocess = top | folder.file.generate | generate, folder.file.preprocess | preprocess
    shown = {name: value for name, value in preprocess.items() if name not in NOT_FOR_CLIENTS}
    return generate | ({"preprocess": shown} if shown else {})


def _model(folder: Job | None, run: dg.DagsterRun) -> tuple[str | None, str | None]:
    """The job's model family and checkpoint, see `GenerateSettings.made_with`; None if its settings cannot be used."""
    try:
        return folder.generate_settings(**given_settings(run)["generate"]).made_with if folder else (None, None)
    except BadInput:
        return None, None


def settings_tags(generate: dict[str, Any], preprocess: dict[str, Any]) -> dict[str, str]:
    """Tags that keep the settings of requests, for `given_settings`."""
    text = json.dumps({"generate": generate, "preprocess": preprocess})  # ASCII: a character is a byte
    parts = [text[start : start + TAG_BYTES] for start in range(0, len(text), TAG_BYTES)]
    return dict(zip(_settings_names(), parts))


def _settings_names() -> Iterator[str]:
    return chain([SETTINGS], (f"{SETTINGS}-{number}" for number in count(2)))


def given_settings(run: dg.DagsterRun) -> dict[str, dict[str, Any]]:
    """The settings of the requests that led to a run, by `generate` and `preprocess`."""
    if SETTINGS in run.tags:
        return json.loads("".join(run.tags[name] for name in takewhile(run.tags.__contains__, _settings_names())))
    ops: Any = run.run_config.get("ops", {})
    names = {"generate": "generated_video", "preprocess": "preprocessed_clips"}
    return {name: ops.get(op, {}).get("config", {}) for name, op in names.items()}


def _video(env: Environment, key: str) -> Video | None:
    result = Result.read(env.videos_root / key / "result.json")
    if result is None:
        return None
    model, variant = result.settings.made_with if result.settings else (None, None)
    return Video(
        model=model,
        variant=variant,
        frames=result.frames,
        fps=result.fps,
        width=result.width,
        height=result.height,
        clips=result.segments,
        seconds=result.seconds.total,
        device=result.device,
    )


def _time(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
