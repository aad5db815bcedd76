"""How steps fail: with a message, and with a retry only if it can help."""

from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from wan_orchestration.errors import BadInput

RETRIES = 2
WAIT_SECONDS = 5


@contextmanager
def failures_in_words(
    context: dg.AssetExecutionContext | dg.AssetCheckExecutionContext, *may_pass: type[Exception]
) -> Iterator[None]:
    """Fails the step at once for BadInput, and retries it twice for the exceptions in `may_pass`.

    Dagster's own retry policy would also retry a step that was cancelled.
    """
    try:
        yield
    except BadInput as error:
        raise dg.Failure(str(error), allow_retries=False) from None
    except may_pass as error:
        if context.retry_number < RETRIES:
            raise dg.RetryRequested(max_retries=RETRIES, seconds_to_wait=WAIT_SECONDS) from error
        raise dg.Failure(str(error), allow_retries=False) from error


def reason(instance: dg.DagsterInstance, run_id: str) -> str | None:
    """The messages of a run's failed steps, one a line; None if no step failed."""
    failures = instance.all_logs(run_id, of_type=dg.DagsterEventType.STEP_FAILURE)
    reasons = [f"{entry.step_key}: {step_message(entry.dagster_event)}" for entry in failures if entry.dagster_event]
    return "\n".join(reasons) or None


def step_message(event: dg.DagsterEvent) -> str:
    """What a failed step says: the text of its `dg.Failure`, else of its exception."""
    failure = event.step_failure_data
    described = failure.user_failure_data and failure.user_failure_data.description
    return described or (failure.error.message.strip() if failure.error else "")
