"""The jobs whose video is missing or out of date."""

from typing import NamedTuple

import dagster as dg

from wan_orchestration.defs.freshness import clips_are_fresh, latest_of_all, video_is_fresh
from wan_orchestration.defs.jobs.review import waits_for_look
from wan_orchestration.defs.jobs.run_requests import in_progress
from wan_orchestration.defs.jobs.versions import JobVersion
from wan_orchestration.defs.weights.needed import Snapshots
from wan_orchestration.errors import BadInput
from wan_orchestration.jobs.folder import Job
from wan_orchestration.settings.environment import environment


class StaleJobs(NamedTuple):
    jobs: list[JobVersion]
    """The jobs that need a video, the most urgent first."""
    unusable: dict[str, str]
    """By key, the reasons why other jobs cannot be used."""
    waiting: list[str]
    """The keys of jobs that need a video, but somebody must look at their clips first."""


def stale_jobs(instance: dg.DagsterInstance) -> StaleJobs:
    """The jobs that need a video. Leaves out jobs with a queued or started run.

    BadInput: the weights of all jobs are missing.
    """
    env, snapshots = environment(), Snapshots()
    registered = instance.get_dynamic_partitions("jobs")
    busy = in_progress(instance, registered)
    all_clips, all_videos = (latest_of_all(instance, asset) for asset in ("preprocessed_clips", "generated_video"))
    stale: list[JobVersion] = []
    unusable: dict[str, str] = {}
    without: dict[str, str] = {}
    waiting: list[str] = []
    with_weights = False
    for key in registered:
        folder = env.jobs_root / key
        if key in busy or not folder.is_dir():
            continue
        try:
            job = JobVersion.of(Job.open(folder))
        except (BadInput, OSError) as error:
            unusable[key] = str(error)
            continue
        try:
            weights = snapshots.of(job.model, job.variant).fingerprint
        except BadInput as error:
            without[key] = str(error)
            continue
        with_weights = True
        clips = all_clips.get(key, {})
        fresh = clips_are_fresh(clips, job) and video_is_fresh(all_videos.get(key, {}), job, clips, weights)
        if fresh and (env.videos_root / key / "video.mp4").is_file():
            continue
        if waits_for_look(instance, job, clips):
            waiting.append(key)
        else:
            stale.append(job)
    if without and not with_weights:
        raise BadInput(next(iter(without.values())))
    return StaleJobs(sorted(stale, key=lambda job: job.urgency), unusable | without, waiting)
