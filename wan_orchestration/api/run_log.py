"""Reads a run's log from Dagster: why it failed, and its events as text. Paths of the server are shortened."""

from collections.abc import Iterator
from datetime import UTC, datetime

import dagster as dg

from wan_orchestration.api.paths import without_paths
from wan_orchestration.defs.failures import step_message


def failure_reason(instance: dg.DagsterInstance, key: str, run_id: str) -> str:
    """Why a run failed for a job: the messages of its failed steps, else the run's own last message."""
    reasons, last = [], "the run's process ended; its log says more"
    kinds = {dg.DagsterEventType.STEP_FAILURE, dg.DagsterEventType.RUN_FAILURE}
    for entry in instance.all_logs(run_id, of_type=kinds):
        event = entry.dagster_event
        if event and event.is_step_failure:
            reasons += step_message(event).splitlines()
        elif event and event.message:
            last = event.message
    # The failure of a run of several jobs has a line for each job that failed.
    own = [line for line in reasons if line.startswith(f"{key}: ")]
    return without_paths("\n".join(own or reasons) or last)


def log_lines(instance: dg.DagsterInstance, run_id: str) -> Iterator[str]:
    """The run's events as lines of text: time, step, message."""
    cursor = None
    while True:
        page = instance.get_records_for_run(run_id, cursor=cursor, limit=500)
        for record in page.records:
            entry = record.event_log_entry
            step = f"{entry.step_key}: " if entry.step_key else ""
            text = entry.message or entry.user_message or (entry.dagster_event_type or "").lower()
            event = entry.dagster_event
            if event and event.is_step_failure and (failure := event.step_failure_data):
                description = failure.user_failure_data and failure.user_failure_data.description
                text += "\n" + (description or (failure.error.to_string() if failure.error else ""))
            time = datetime.fromtimestamp(entry.timestamp, UTC).isoformat(timespec="milliseconds")
            yield without_paths(f"{time} {step}{text.rstrip()}") + "\n"
        if not page.has_more:
            return
        cursor = page.cursor
