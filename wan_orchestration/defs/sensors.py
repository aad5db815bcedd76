"""Tells another system of runs that fail."""

import time
from typing import Any

import dagster as dg

from wan_orchestration.defs.failures import reason
from wan_orchestration.defs.jobs.run_requests import jobs_of
from wan_orchestration.errors import validate
from wan_orchestration.settings.service import FailureWebhookSettings

_settings = validate(FailureWebhookSettings, {})


class NotDelivered(RuntimeError):
    """Nobody took the message."""


@dg.run_failure_sensor(
    minimum_interval_seconds=15,
    default_status=dg.DefaultSensorStatus.RUNNING if _settings.url else dg.DefaultSensorStatus.STOPPED,
    description="Posts JSON about each failed run to WAN_FAILURE_WEBHOOK_URL; off without one.",
)
def failure_webhook(context: dg.RunFailureSensorContext) -> None:
    settings = validate(FailureWebhookSettings, {})
    if settings.url is None:
        context.log.warning("WAN_FAILURE_WEBHOOK_URL is not set, so nobody is told")
        return
    post(settings, message(context.instance, context.dagster_run))


def message(instance: dg.DagsterInstance, run: dg.DagsterRun) -> dict[str, Any]:
    """What is posted."""
    record = instance.get_run_record_by_id(run.run_id)
    return {
        "event": "run_failed",
        "run_id": run.run_id,
        "dagster_job": run.job_name,
        "jobs": jobs_of(run, instance.get_dynamic_partitions("jobs")),
        "error": reason(instance, run.run_id),
        "started_at": record and record.start_time,
        "ended_at": record and record.end_time,
        "will_retry": run.tags.get("dagster/will_retry") == "true",
    }


def post(settings: FailureWebhookSettings, body: dict[str, Any]) -> None:
    """Raises NotDelivered once all tries have failed; the message leaves the URL out, which may hold a secret."""
    import httpx  # noqa: PLC0415 (only here)

    assert settings.url
    said = ""
    for attempt in range(settings.tries):
        if attempt:
            time.sleep(2 ** (attempt - 1))
        try:
            answer = httpx.post(settings.url.get_secret_value(), json=body, timeout=settings.timeout_seconds)
        except httpx.HTTPError as error:
            said = type(error).__name__
            continue
        if answer.is_success:
            return
        said = f"HTTP {answer.status_code}"
        if 400 <= answer.status_code < 500 and answer.status_code not in (408, 429):
            break
    raise NotDelivered(f"WAN_FAILURE_WEBHOOK_URL: run {body['run_id']} could not be told of: {said}")
