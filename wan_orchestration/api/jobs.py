"""Finds, lists, cancels and removes jobs. Nothing is stored here: the data is Dagster's instance and the data folders.

A job exists for the API once a run that makes its video or its clips is planned, whoever started the run: this API, the
UI, a sensor or a shell. The newest such run gives the job's state.
"""

import heapq
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import dagster as dg

from wan_orchestration.api import run_log
from wan_orchestration.api.clips import converted_folders
from wan_orchestration.api.job_info import (
    PATH,
    QUEUED,
    has_video,
    inputs_for_clients,
    job_info,
    job_status,
    open_folder,
)
from wan_orchestration.api.models import JobInfo, JobList, Status
from wan_orchestration.api.playable import playable, viewable
from wan_orchestration.api.problems import Problem
from wan_orchestration.api.uploads import PICTURES
from wan_orchestration.defs.jobs.review import newest_plan
from wan_orchestration.defs.jobs.run_requests import CLIPS, VIDEO, makes_only_clips
from wan_orchestration.errors import BadInput
from wan_orchestration.files import remove
from wan_orchestration.jobs.folder import check_key
from wan_orchestration.launch.dagster_internals import WILL_RETRY_TAG
from wan_orchestration.protocol import progress
from wan_orchestration.settings.environment import Environment

UPLOADED = ".uploaded"
"""A file that marks uploaded job folders. Purging removes these folders, but not those that users made."""

MAX_SCANNED = 2000
"""How many planned videos and clips are read for one page of a list."""


class Jobs:
    """The jobs of one Dagster instance and one data folder."""

    def __init__(self, instance: dg.DagsterInstance, env: Environment) -> None:
        self.instance, self.env = instance, env

    def get(self, key: str) -> JobInfo:
        """Problem 404: no run has planned this job's video or clips, or the job was purged."""
        return job_info(self.instance, self.env, key, self.existing(key))

    def record(self, key: str) -> dg.RunRecord | None:
        """The newest run that planned to make the job's video, or only its clips."""
        try:
            planned = newest_plan(self.instance, check_key(key))
        except BadInput:
            return None
        record = planned and self.instance.get_run_record_by_id(planned[1])
        return None if not record or _purged_tag(key) in record.dagster_run.tags else record

    def is_taken(self, key: str) -> bool:
        """Whether a folder, an output or a run of a job with this name exists."""
        roots = (self.env.jobs_root, self.env.clips_root, self.env.videos_root)
        return any(os.path.lexists(root / key) for root in roots) or self.record(key) is not None

    def page(self, status: Status | None, limit: int, before: int | None) -> JobList:
        """A page of jobs, the newest runs first. It holds only runs before the position `before` in the event log."""
        jobs, next_position, newest = [], None, {}
        planned = heapq.merge(self._planned(VIDEO, before), self._planned(CLIPS, before), reverse=True)
        for scanned, (position, key, run_id, is_video) in enumerate(planned):
            if len(jobs) == limit or scanned == MAX_SCANNED:
                next_position = position + 1
                break
            if key not in newest:
                newest[key] = self.record(key)
            record = newest[key]
            # A job is listed with its newest run only, and a run that makes both clips and video only for its video.
            if record is None or record.dagster_run.run_id != run_id:
                continue
            if is_video == makes_only_clips(record.dagster_run):
                continue
            if status in (None, job_status(self.instance, key, record)):
                jobs.append(job_info(self.instance, self.env, key, record))
        query = f"&status={status}" if status else ""
        next_page = f"{PATH}?limit={limit}&before={next_position}{query}" if next_position else None
        return JobList(jobs=jobs, next=next_page)

    def cancel(self, key: str) -> JobInfo:
        """Cancel the job's run; a job that has ended stays as it is. Problem 404; 409: other jobs would stop too."""
        record = self.existing(key)
        run = record.dagster_run
        status = job_status(self.instance, key, record)
        if run.tags.get("dagster/partition") != key and status in ("queued", "running"):
            detail = f"job {key} shares run {run.run_id} with other jobs, which would stop too"
            raise Problem(409, f"{detail}; it can be cancelled in Dagster's UI")
        if run.is_complete_and_waiting_to_retry:
            self.instance.add_run_tags(run.run_id, {WILL_RETRY_TAG: "false"})
        elif run.status is dg.DagsterRunStatus.NOT_STARTED:
            self.instance.report_run_canceled(run)
        elif not run.is_finished and run.status is not dg.DagsterRunStatus.CANCELING:
            try:
                self.instance.run_coordinator.cancel_run(run.run_id)
            except dg.DagsterError as error:
                # The run's code server is gone. The daemon's run monitoring will end the run.
                self.instance.report_engine_event(f"The run could not be told to stop: {error}", run)
        return self.get(key)

    def purge(self, key: str) -> None:
        """Remove a job's outputs, and its inputs if they were uploaded. Problem 404; 409: it has not ended."""
        record = self.existing(key)
        if job_status(self.instance, key, record) in ("queued", "running"):
            raise Problem(409, f"job {key} has not ended yet; cancel it and try again", headers={"Retry-After": "5"})
        self.instance.add_run_tags(record.dagster_run.run_id, {_purged_tag(key): "true"})
        folder = self.env.jobs_root / key
        if (folder / UPLOADED).is_file():
            remove(folder)
            self.instance.delete_dynamic_partition("jobs", key)
        for root in (self.env.clips_root, self.env.previews_root, self.env.videos_root):
            remove(root / key)
        for copies in converted_folders(self.env, key):
            shutil.rmtree(copies, ignore_errors=True)
        progress.delete(self.env.progress_root, key)
        for name in ("driving", *PICTURES):
            remove(self._converted(key, name))

    def output(self, key: str, name: str) -> Path:
        """A file of the newest video. Problem 404: no such file; 409: the run that was to make it has not succeeded."""
        record = self.existing(key)
        status = job_status(self.instance, key, record)
        if not has_video(self.instance, key, record, status):
            raise Problem(409, f"job {key} is {status}; there is a result once it has succeeded")
        path = self.env.videos_root / key / name
        if path.is_symlink() or not path.is_file():
            raise Problem(404, f"job {key} has no {name}")
        return path

    def input(self, key: str, name: str) -> Path:
        """The job's `reference` or `driving` (for ready clips, the pose clip), for browsers. Problem 404."""
        self.existing(key)
        path = inputs_for_clients(open_folder(self.env, key)).get(name)
        if path is None:
            raise Problem(404, f"job {key} has no {name} any more")
        convert = playable if name == "driving" else viewable
        return convert(path, self._converted(key, name))

    def log(self, key: str) -> Iterator[str]:
        """Lines of the log of the job's run. Problem 404."""
        return run_log.log_lines(self.instance, self.existing(key).dagster_run.run_id)

    def count_queued(self) -> int:
        """Number of runs in the queue."""
        return self.instance.get_runs_count(dg.RunsFilter(statuses=QUEUED))

    def existing(self, key: str) -> dg.RunRecord:
        """The job's newest run. Problem 404: there is none."""
        record = self.record(key)
        if record is None:
            raise Problem(404, f"there is no job {key[:80]!r}")
        return record

    def _planned(self, asset: dg.AssetKey, before: int | None) -> Iterator[tuple[int, str, str, bool]]:
        """Planned videos or clips, the newest first: position in the event log, job, run, whether it is a video."""
        while True:
            records = self.instance.fetch_planned_materializations(
                dg.AssetRecordsFilter(asset, before_storage_id=before), limit=100
            ).records
            for record in records:
                before = record.storage_id
                if record.partition_key is not None:
                    yield record.storage_id, record.partition_key, record.run_id, asset == VIDEO
            if len(records) < 100:
                return

    def _converted(self, key: str, name: str) -> Path:
        """The place for a copy of an input that browsers cannot show."""
        suffix = "mp4" if name == "driving" else "jpg"
        return self.env.data_root / "playable" / f"{key}.{name}.{suffix}"


def _purged_tag(key: str) -> str:
    """Name of the tag that hides a run from the API, because its job was purged."""
    return f"wan/purged/{key}"
