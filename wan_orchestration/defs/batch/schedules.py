"""All videos that are missing or out of date, at night."""

import dagster as dg

from wan_orchestration.defs.batch.outdated import outdated
from wan_orchestration.defs.jobs.run_requests import group, make_videos, request
from wan_orchestration.errors import BadInput, validate
from wan_orchestration.settings.service import BatchSettings

_settings = validate(BatchSettings, {})


@dg.schedule(
    job=make_videos,
    cron_schedule=_settings.cron,
    execution_timezone=_settings.timezone,
    default_status=dg.DefaultScheduleStatus.RUNNING if _settings.nightly else dg.DefaultScheduleStatus.STOPPED,
)
def nightly_batch(context: dg.ScheduleEvaluationContext) -> list[dg.RunRequest] | dg.SkipReason:
    """Runs for all jobs without an up-to-date video, the most urgent first, many to a launch."""
    try:
        asks, unusable = outdated(context.instance)
    except BadInput as error:
        return dg.SkipReason(str(error))
    for reason in unusable.values():
        context.log.warning(reason)
    if not asks:
        return dg.SkipReason("all videos are up to date")
    return [
        request(run) for run in group(asks, context.instance.get_dynamic_partitions("jobs"), _settings.max_jobs_per_run)
    ]
