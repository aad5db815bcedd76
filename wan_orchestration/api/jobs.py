"""Jobs as Dagster's instance and the data folders have them; nothing is kept here.

A job is known once a run has planned to make its video, whoever started that run: this API, the UI, a sensor, a shell.
The newest such run is the job's state.
"""

import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
from dagster._core.storage.dagster_run import RunRecord
from pydantic import ValidationError

from wan_orchestration.api import run_words
from wan_orchestration.api.models import Job, JobList, Links, Progress, Status, Video
from wan_orchestration.api.playable import playable, visible
from wan_orchestration.api.problems import Problem
from wan_orchestration.errors import BadInput
from wan_orchestration.files import remove
from wan_orchestration.jobs.folder import Job as JobFolder
from wan_orchestration.jobs.folder import check_key
from wan_orchestration.protocol import progress
from wan_orchestration.protocol.messages import PreprocessProgress, Result
from wan_orchestration.protocol.progress import RunProgress
from wan_orchestration.settings.environment import Environment

VIDEO = dg.AssetKey("generated_video")

PATH = "/animate/jobs"

UPLOADED = ".uploaded"
"""A file in the job folders that were uploaded: purging removes them, and leaves alone those that a person made."""

SCANNED = 2000
"""Runs that one page of a list looks at."""

QUEUED = [dg.DagsterRunStatus.QUEUED]

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


class Jobs:
    """Looks jobs up, cancels and removes them."""

    def __init__(self, instance: dg.DagsterInstance, env: Environment) -> None:
        self.instance, self.env = instance, env

    def get(self, key: str) -> Job:
        """Problem 404: nobody has asked for this job's video, or it was purged."""
        record = self.record(key)
        if record is None:
            raise Problem(404, f"there is no job {key[:80]!r}")
        return self._describe(key, record)

    def record(self, key: str) -> RunRecord | None:
        """The newest run that is, or was, to make the job's video."""
        try:
            planned = self.instance.get_latest_planned_materialization_info(VIDEO, check_key(key))
        except BadInput:
            return None
        record = planned and self.instance.get_run_record_by_id(planned.run_id)
        return None if not record or _purged(key) in record.dagster_run.tags else record

    def is_taken(self, key: str) -> bool:
        """Whether there is anything of a job of that name: a folder, something that was made, a run."""
        roots = (self.env.jobs_root, self.env.clips_root, self.env.videos_root)
        return any(os.path.lexists(root / key) for root in roots) or self.record(key) is not None

    def page(self, status: Status | None, limit: int, before: int | None) -> JobList:
        """Jobs, those with the newest runs first; `before` is where the last page has stopped."""
        jobs, further = [], None
        for looked_at, (place, key, run_id) in enumerate(self._planned(before)):
            if len(jobs) == limit or looked_at == SCANNED:
                further = place + 1
                break
            record = self.record(key)
            # Older runs of a job are met further down.
            if record is None or record.dagster_run.run_id != run_id:
                continue
            if status in (None, self._status(key, record)):
                jobs.append(self._describe(key, record))
        query = f"&status={status}" if status else ""
        return JobList(jobs=jobs, next=f"{PATH}?limit={limit}&before={further}{query}" if further else None)

    def cancel(self, key: str) -> Job:
        """Have the job's run stop; a job that has ended stays as it is. Problem 404; 409: others would stop too."""
        record = self.record(key)
        if record is None:
            raise Problem(404, f"there is no job {key[:80]!r}")
        run = record.dagster_run
        if run.tags.get("dagster/partition") != key and self._status(key, record) in ("queued", "running"):
            detail = f"job {key} shares run {run.run_id} with other jobs, which would stop too"
            raise Problem(409, f"{detail}; it can be cancelled in Dagster's UI")
        if run.is_complete_and_waiting_to_retry:
            self.instance.add_run_tags(run.run_id, {"dagster/will_retry": "false"})
        elif run.status is dg.DagsterRunStatus.NOT_STARTED:
            self.instance.report_run_canceled(run)
        elif not run.is_finished and run.status is not dg.DagsterRunStatus.CANCELING:
            try:
                self.instance.run_coordinator.cancel_run(run.run_id)
            except dg.DagsterError as error:
                # Its code server is gone. The daemon's monitoring ends runs whose process does not answer.
                self.instance.report_engine_event(f"The run could not be told to stop: {error}", run)
        return self.get(key)

    def purge(self, key: str) -> None:
        """Remove what a job has made, its inputs too if they were uploaded. Problem 404; 409: it has not ended."""
        record = self.record(key)
        if record is None:
            raise Problem(404, f"there is no job {key[:80]!r}")
        if self._status(key, record) in ("queued", "running"):
            raise Problem(409, f"job {key} has not ended yet; cancel it and try again", headers={"Retry-After": "5"})
        self.instance.add_run_tags(record.dagster_run.run_id, {_purged(key): "true"})
        folder = self.env.jobs_root / key
        if (folder / UPLOADED).is_file():
            remove(folder)
            self.instance.delete_dynamic_partition("jobs", key)
        for root in (self.env.clips_root, self.env.videos_root):
            remove(root / key)
        progress.forget(self.env.progress_root, key)
        for suffix in ("mp4", "jpg"):
            remove(self._copy(key, suffix))

    def output(self, key: str, name: str) -> Path:
        """A file of the finished job. Problem 404; 409: it has not succeeded (yet)."""
        job = self.get(key)
        if job.status != "succeeded":
            raise Problem(409, f"job {key} is {job.status}; there is a result once it has succeeded")
        return self._there(self.env.videos_root / key / name, f"job {key} has no {name}")

    def input(self, key: str, name: str) -> Path:
        """The job's `reference` or `driving` (of ready clips, the pose clip). Problem 404."""
        self.get(key)
        path = _inputs(self._folder(key)).get(name)
        if path is None:
            raise Problem(404, f"job {key} has no {name} any more")
        return playable(path, self._copy(key, "mp4")) if name == "driving" else visible(path, self._copy(key, "jpg"))

    def log(self, key: str) -> Iterator[str]:
        """Lines of the log of the job's run. Problem 404."""
        record = self.record(key)
        if record is None:
            raise Problem(404, f"there is no job {key[:80]!r}")
        return run_words.log(self.instance, record.dagster_run.run_id)

    def waiting(self) -> int:
        """Runs in the queue."""
        return self.instance.get_runs_count(dg.RunsFilter(statuses=QUEUED))

    def _planned(self, before: int | None) -> Iterator[tuple[int, str, str]]:
        """Plans to make videos, the newest first: where it stands in the event log, job, run."""
        while True:
            records = self.instance.fetch_planned_materializations(
                dg.AssetRecordsFilter(VIDEO, before_storage_id=before), limit=100
            ).records
            for record in records:
                before = record.storage_id
                if record.partition_key is not None:
                    yield record.storage_id, record.partition_key, record.run_id
            if len(records) < 100:
                return

    def _status(self, key: str, record: RunRecord) -> Status:
        run = record.dagster_run
        if run.is_complete_and_waiting_to_retry:
            return "queued"
        status = STATUSES[run.status]
        # A run of many jobs: those whose video is there have succeeded, however the others go.
        if run.tags.get("dagster/partition") != key and status in ("running", "failed", "cancelled"):
            made = self.instance.fetch_materializations(dg.AssetRecordsFilter(VIDEO, [key]), limit=1).records
            if made and made[0].run_id == run.run_id:
                return "succeeded"
        return status

    def _describe(self, key: str, record: RunRecord) -> Job:
        run, status = record.dagster_run, self._status(key, record)
        first = run.root_run_id and self.instance.get_run_record_by_id(run.root_run_id)
        ended = status in ("succeeded", "failed", "cancelled")
        folder, made = self._folder(key), self.env.videos_root / key
        inputs = _inputs(folder)
        here = f"{PATH}/{key}"

        def link(path: Path, name: str) -> str | None:
            return f"{here}/{name}" if status == "succeeded" and path.is_file() else None

        return Job(
            job_id=key,
            status=status,
            cancelling=run.status is dg.DagsterRunStatus.CANCELING,
            created_at=(first or record).create_timestamp.replace(tzinfo=UTC),
            started_at=_time(record.start_time) if status != "queued" else None,
            finished_at=_time(record.end_time) if ended else None,
            queue_position=self._position(record) if status == "queued" else None,
            priority=_priority(run),
            progress=self._progress(key, record) if status == "running" else None,
            error=run_words.reason(self.instance, key, run.run_id) if status == "failed" else None,
            settings=_given(folder, run),
            video=self._video(key) if status == "succeeded" else None,
            run_id=run.run_id,
            links=Links(
                self=here,
                events=f"{here}/events",
                log=f"{here}/log",
                media=link(made / "video.mp4", "media"),
                poster=link(made / "poster.jpg", "poster"),
                preview=link(made / "preview.webp", "preview"),
                reference=f"{here}/inputs/reference" if "reference" in inputs else None,
                driving=f"{here}/inputs/driving" if "driving" in inputs else None,
            ),
        )

    def _copy(self, key: str, suffix: str) -> Path:
        """Of an input that browsers cannot show."""
        return self.env.data_root / "playable" / f"{key}.{suffix}"

    def _folder(self, key: str) -> JobFolder | None:
        try:
            return JobFolder.open(self.env.jobs_root / key)
        except BadInput:
            return None

    def _position(self, record: RunRecord) -> int:
        mine = (_priority(record.dagster_run), -record.storage_id)
        queued = self.instance.get_run_records(dg.RunsFilter(statuses=QUEUED), limit=SCANNED)
        return 1 + sum((_priority(other.dagster_run), -other.storage_id) > mine for other in queued)

    def _progress(self, key: str, record: RunRecord) -> Progress:
        note = progress.read(self.env.progress_root, key, record.dagster_run.run_id)
        if note is None:
            at = _time(record.start_time) or datetime.now(UTC)
            return Progress(phase="preparing", words="preparing", fraction=None, updated_at=at)
        return _counted(note)

    def _video(self, key: str) -> Video | None:
        try:
            result = Result.model_validate_json((self.env.videos_root / key / "result.json").read_bytes())
        except (OSError, ValidationError):
            return None
        return Video(
            frames=result.frames,
            fps=result.fps,
            width=result.width,
            height=result.height,
            clips=result.clips,
            seconds=result.seconds.total,
            device=result.device,
        )

    def _there(self, path: Path, otherwise: str) -> Path:
        if path.is_symlink() or not path.is_file():
            raise Problem(404, otherwise)
        return path


def _purged(key: str) -> str:
    """The tag that hides a run: nothing is left of what it made for this job."""
    return f"wan/purged/{key}"


def _priority(run: dg.DagsterRun) -> int:
    try:
        return int(run.tags.get("dagster/priority", "0"))
    except ValueError:
        return 0


def _inputs(folder: JobFolder | None) -> dict[str, Path]:
    """What a client may look at beside the result; links may lead out of the data folder."""
    names = {"driving": "driving", "reference": "reference", "src_pose": "driving", "src_ref": "reference"}
    inputs = folder.inputs.items() if folder else ()
    return {names[name]: path for name, path in inputs if name in names and not path.is_symlink()}


def _given(folder: JobFolder | None, run: dg.DagsterRun) -> dict:
    """The settings of a job that are not the defaults: those of its `job.yaml` under those of the request."""
    ops: Any = run.run_config.get("ops", {})
    generate, preprocess = (ops.get(op, {}).get("config", {}) for op in ("generated_video", "preprocessed_clips"))
    if folder:
        mode = {"mode": folder.file.mode} if folder.file.mode else {}
        generate, preprocess = mode | folder.file.generate | generate, folder.file.preprocess | preprocess
    return generate | ({"preprocess": preprocess} if preprocess else {})


def _time(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def _counted(note: RunProgress) -> Progress:
    at = note.progress
    known = {"phase": at.phase, "words": at.words, "fraction": note.fraction, "updated_at": note.at}
    if isinstance(at, PreprocessProgress):
        return Progress(**known, frame=at.done, frames=at.total)
    return Progress(
        **known,
        clip=at.clip or None,
        clips=at.clips or None,
        step=at.step if at.clip else None,
        steps=at.steps or None,
        seconds_per_step=at.seconds_per_step,
        eta_seconds=at.eta_seconds,
    )
