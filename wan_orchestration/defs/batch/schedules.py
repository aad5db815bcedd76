"""The nightly batch: all videos that are missing or out of date."""

import dagster as dg

from wan_orchestration.defs.batch.stale import stale_jobs
from wan_orchestration.defs.jobs.run_requests import group, make_videos, request_tags
from wan_orchestration.errors import BadInput, validate
from wan_orchestration.settings.service import BatchSettings


def nightly_batch(context: dg.ScheduleEvaluationContext) -> list[dg.RunRequest] | dg.SkipReason:
    """Requests runs for all jobs without an up-to-date video, the most urgent first, many in one launch."""
    try:
        jobs, unusable, waiting = stale_jobs(context.instance)
    except BadInput as error:
        return dg.SkipReason(str(error))
    for reason in unusable.values():
        context.log.warning(reason)
    if waiting:
        context.log.info(f"somebody must look at the clips of these jobs first: {', '.join(waiting)}")
    if not jobs:
        return dg.SkipReason("no other video is out of date" if waiting else "all videos are up to date")
    limit = validate(BatchSettings, {}).max_jobs_per_run
    runs = group(jobs, context.instance.get_dynamic_partitions("jobs"), limit)
    return [dg.RunRequest(tags=request_tags(run)) for run in runs]


@dg.definitions
def schedules() -> dg.Definitions:
    settings = validate(BatchSettings, {})
    schedule = dg.schedule(
        job=make_videos,
        cron_schedule=settings.cron,
        execution_timezone=settings.timezone,
        default_status=dg.DefaultScheduleStatus.RUNNING if settings.nightly else dg.DefaultScheduleStatus.STOPPED,
    )
    return dg.Definitions(schedules=[schedule(nightly_batch)])
