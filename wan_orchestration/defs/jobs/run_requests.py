"""Runs that make videos or only clips: their Dagster jobs, their tags, and which jobs share one."""

from collections.abc import Iterable, Sequence

import dagster as dg

from wan_orchestration.defs.jobs.versions import JobVersion

make_videos = dg.define_asset_job(
    "make_videos",
    # generated_video checks each video itself. If the run planned the checks too, Dagster would fail them with the run.
    selection=dg.AssetSelection.assets("weight_snapshot", "generated_video").without_checks(),
    description="The videos of one job or of several in one launch, and what they need: weights, clips.",
)

make_clips = dg.define_asset_job(
    "make_clips",
    # preprocessed_clips checks the clips itself in such a run.
    selection=dg.AssetSelection.assets("weight_snapshot", "preprocessed_clips").without_checks(),
    description="The clips of one job, for somebody to look at. Materialize generated_video to make the video of them.",
)

CLIPS, VIDEO = dg.AssetKey("preprocessed_clips"), dg.AssetKey("generated_video")

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
TAGS_PER_QUERY = 500
"""SQLite limits the number of values in a query."""


def job_tag(key: str) -> str:
    """Name of the run tag for a job; its value is the content that the run was started for."""
    return f"{JOB}{key}"


def run_tags(jobs: Sequence[JobVersion]) -> dict[str, str]:
    """Tags of every run for these jobs, whoever starts it. Dagster's queue sorts runs by priority."""
    return {
        **{job_tag(job.key): job.content for job in jobs},
        "model": ", ".join(sorted({job.model for job in jobs})),
        "mode": ", ".join(sorted({job.mode for job in jobs})),
        PRIORITY: str(max(job.priority for job in jobs)),
    }


def makes_videos(run: dg.DagsterRun) -> bool:
    return run.job_name == make_videos.name or VIDEO in (run.asset_selection or ())


def makes_only_clips(run: dg.DagsterRun) -> bool:
    """Whether a run makes clips and stops, so that the job is then ready for somebody to look at."""
    return run.job_name == make_clips.name or (CLIPS in (run.asset_selection or ()) and not makes_videos(run))


def partition_tags(keys: Sequence[str]) -> dict[str, str]:
    """Tags that select a run's partitions: one, or a range that holds no others."""
    if len(keys) == 1:
        return {"dagster/partition": keys[0]}
    return {RANGE_START: keys[0], RANGE_END: keys[-1]}


def request_tags(jobs: Sequence[JobVersion]) -> dict[str, str]:
    """All tags of a run for jobs whose partitions are neighbours."""
    return {**run_tags(jobs), **partition_tags([job.key for job in jobs])}


def group(jobs: Iterable[JobVersion], registered: Sequence[str], limit: int) -> list[list[JobVersion]]:
    """Groups jobs into runs; the run with the most urgent job comes first.

    Dagster gives a run one partition or a range of partitions in the order of registration, and fails every partition
    of the range that the run does not make. So only jobs whose partitions are neighbours share a run. Jobs that arrive
    together are registered by urgency.

    Args:
        jobs: the jobs to run; those without a partition are left out.
        registered: all partitions, in order.
        limit: most jobs in one run.
    """
    wanted, runs, neighbours = {job.key: job for job in jobs}, [], False
    for key in registered:
        if key not in wanted:
            neighbours = False
            continue
        if not neighbours or len(runs[-1]) == limit:
            runs.append([])
        runs[-1].append(wanted[key])
        neighbours = True
    return sorted(runs, key=lambda run: min(job.urgency for job in run))


def already_run(instance: dg.DagsterInstance, jobs: Sequence[JobVersion]) -> set[str]:
    """Keys of the jobs whose last run was for their present content, however it was started and however it ended."""
    contents: dict[str, set[str]] = {}
    for start in range(0, len(jobs), TAGS_PER_QUERY):
        contents |= instance.get_run_tags([job_tag(job.key) for job in jobs[start : start + TAGS_PER_QUERY]])
    found = {job: contents.get(job_tag(job.key), set()) for job in jobs}
    return {
        job.key
        for job, known in found.items()
        # With several contents, the job may have been changed and changed back.
        if job.content in known and (len(known) == 1 or job.content == _last_content(instance, job.key, known))
    }


def _last_content(instance: dg.DagsterInstance, key: str, contents: set[str]) -> str:
    (last,) = instance.get_runs(dg.RunsFilter(tags={job_tag(key): sorted(contents)}), limit=1)
    return last.tags[job_tag(key)]


def in_progress(instance: dg.DagsterInstance, registered: Sequence[str]) -> set[str]:
    """Keys of the jobs that have a queued or started run."""
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
