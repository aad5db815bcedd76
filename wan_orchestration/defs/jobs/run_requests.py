"""Runs that make videos: the Dagster job for them, their tags, and how jobs are put together into them."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import dagster as dg

from wan_orchestration.jobs.folder import Job
from wan_orchestration.settings.generate import Mode

make_videos = dg.define_asset_job(
    "make_videos",
    # generated_video checks each video itself. Checks that a run plans as well would count as failed with it.
    selection=dg.AssetSelection.assets("weight_snapshot", "generated_video").without_checks(),
    description="The videos of one job or of several in one launch, and what they need: weights, clips.",
)

RANGE_START, RANGE_END = "dagster/asset_partition_range_start", "dagster/asset_partition_range_end"
PRIORITY = "dagster/priority"
JOB = "job/"

UNFINISHED = [
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
TAGS_AT_ONCE = 500
"""SQLite takes only so many values in a query."""


@dataclass(frozen=True)
class Ask:
    """A job as runs are told of it."""

    key: str
    content: str
    """Hash of the inputs and of what `job.yaml` says about them, but for the priority."""
    mode: Mode
    priority: int

    @classmethod
    def of(cls, job: Job, fingerprint: str | None = None) -> "Ask":
        """As the job's folder is now; `fingerprint` spares reading its inputs where that has been done. BadInput."""
        facts = [fingerprint or job.fingerprint(), job.file.model_dump(mode="json", exclude={"priority"})]
        content = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
        return cls(job.key, content, job.generate_settings().mode, job.file.priority)


def job_tag(key: str) -> str:
    """The run tag that names a job. Its value is the job's content at the time."""
    return f"{JOB}{key}"


def run_tags(jobs: Sequence[Ask]) -> dict[str, str]:
    """What a run for these jobs is tagged with, whoever starts it; the queue goes by the priority."""
    return {
        **{job_tag(job.key): job.content for job in jobs},
        "mode": ", ".join(sorted({job.mode for job in jobs})),
        PRIORITY: str(max(job.priority for job in jobs)),
    }


def group(jobs: Iterable[Ask], registered: Sequence[str], most: int) -> list[list[Ask]]:
    """Jobs put together into runs of up to `most`, the run with the most urgent job first.

    Dagster gives a run one partition or a range of them, in the order of their registration, and what lies in the range
    but is not made counts as failed with the run. So only jobs whose partitions lie side by side share a run, and jobs
    that come together are registered by `urgency`.

    Args:
        jobs: each registered.
        registered: all partitions, in order.
        most: jobs in a run.
    """
    wanted, runs, side_by_side = {job.key: job for job in jobs}, [], False
    for key in registered:
        if key not in wanted:
            side_by_side = False
            continue
        if not side_by_side or len(runs[-1]) == most:
            runs.append([])
        runs[-1].append(wanted[key])
        side_by_side = True
    return sorted(runs, key=lambda run: min(map(urgency, run)))


def urgency(job: Ask) -> tuple[int, str]:
    """What jobs are sorted by: the highest priority first, then by name."""
    return -job.priority, job.key


def partition_tags(keys: Sequence[str]) -> dict[str, str]:
    """The tags that give a run its partitions: one, or a range that holds no others."""
    if len(keys) == 1:
        return {"dagster/partition": keys[0]}
    return {RANGE_START: keys[0], RANGE_END: keys[-1]}


def request(jobs: Sequence[Ask]) -> dg.RunRequest:
    """A run for jobs that lie side by side."""
    return dg.RunRequest(tags=request_tags(jobs))


def request_tags(jobs: Sequence[Ask]) -> dict[str, str]:
    """All tags of a run for jobs that lie side by side, those that give it its partitions included."""
    return {**run_tags(jobs), **partition_tags([job.key for job in jobs])}


def already_run(instance: dg.DagsterInstance, jobs: Sequence[Ask]) -> set[str]:
    """Keys of the jobs whose last run, however it was started and however it ended, was for the content of now."""
    contents: dict[str, set[str]] = {}
    for start in range(0, len(jobs), TAGS_AT_ONCE):
        contents |= instance.get_run_tags([job_tag(job.key) for job in jobs[start : start + TAGS_AT_ONCE]])
    found = {job: contents.get(job_tag(job.key), set()) for job in jobs}
    return {
        job.key
        for job, known in found.items()
        # With several contents it may have been changed, and changed back.
        if job.content in known and (len(known) == 1 or job.content == _last_content(instance, job.key, known))
    }


def _last_content(instance: dg.DagsterInstance, key: str, contents: set[str]) -> str:
    (last,) = instance.get_runs(dg.RunsFilter(tags={job_tag(key): sorted(contents)}), limit=1)
    return last.tags[job_tag(key)]


def at_work(instance: dg.DagsterInstance, registered: Sequence[str]) -> set[str]:
    """Keys of the jobs that have a run that waits or runs."""
    return {key for run in instance.get_runs(dg.RunsFilter(statuses=UNFINISHED)) for key in jobs_of(run, registered)}


def jobs_of(run: dg.DagsterRun, registered: Sequence[str]) -> list[str]:
    """Keys of a run's jobs, which are its partitions. `registered`: all partitions, in order."""
    if "dagster/partition" in run.tags:
        return [run.tags["dagster/partition"]]
    ends = [run.tags.get(RANGE_START), run.tags.get(RANGE_END)]
    if not set(ends) <= set(registered):
        return []
    first, last = (registered.index(end) for end in ends if end)
    return list(registered[first : last + 1])
