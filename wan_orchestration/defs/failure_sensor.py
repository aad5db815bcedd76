"""The run failure sensor: reports failed runs to another system."""

import time
from typing import Any

import dagster as dg

from wan_orchestration.defs.failures import reason
from wan_orchestration.defs.jobs.run_requests import jobs_of
from wan_orchestration.errors import validate
from wan_orchestration.settings.service import FailureWebhookSettings


class NotDelivered(RuntimeError):
    """All tries to reach the webhook failed."""


def failure_webhook(context: dg.RunFailureSensorContext) -> None:
    """Posts JSON about a failed run to WAN_FAILURE_WEBHOOK_URL. NotDelivered: all tries failed."""
    settings = validate(FailureWebhookSettings, {})
    if settings.url is None:
        context.log.warning("WAN_FAILURE_WEBHOOK_URL is not set, so nothing is posted")
        return
    post(settings, message(context.instance, context.dagster_run))


@dg.definitions
def failure_sensors() -> dg.Definitions:
    on = validate(FailureWebhookSettings, {}).url is not None
    sensor = dg.run_failure_sensor(
        name="failure_webhook",
        minimum_interval_seconds=15,
        default_status=dg.DefaultSensorStatus.RUNNING if on else dg.DefaultSensorStatus.STOPPED,
        description="Posts JSON about each failed run to WAN_FAILURE_WEBHOOK_URL; off without one.",
    )
    return dg.Definitions(sensors=[sensor(failure_webhook)])


def message(instance: dg.DagsterInstance, run: dg.DagsterRun) -> dict[str, Any]:
    """The JSON that is posted."""
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
    """Posts the JSON, with retries after failures that may pass.

    NotDelivered: no try succeeded. Its message leaves out the URL, which may hold a secret.
    """
    import httpx  # noqa: PLC0415 (only this function needs them)
    import tenacity  # noqa: PLC0415

    assert settings.url
    url = settings.url.get_secret_value()

    def may_pass(error: BaseException) -> bool:
        if isinstance(error, httpx.HTTPStatusError):
            status = error.response.status_code
            return not 400 <= status < 500 or status in (408, 429)
        return isinstance(error, httpx.HTTPError)

    try:
        for attempt in tenacity.Retrying(
            retry=tenacity.retry_if_exception(may_pass),
            stop=tenacity.stop_after_attempt(settings.tries),
            wait=tenacity.wait_exponential(),
            sleep=time.sleep,
            reraise=True,
        ):
            with attempt:
                httpx.post(url, json=body, timeout=settings.timeout_seconds).raise_for_status()
    except httpx.HTTPError as error:
        answered = isinstance(error, httpx.HTTPStatusError)
        problem = f"HTTP {error.response.status_code}" if answered else type(error).__name__
        run = body["run_id"]
        raise NotDelivered(f"WAN_FAILURE_WEBHOOK_URL: the failure of run {run} was not delivered: {problem}") from None
