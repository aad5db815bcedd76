"""What Dagster has to say of a run, without the paths of the server."""

from collections.abc import Iterator
from datetime import UTC, datetime

import dagster as dg

from wan_orchestration.api.confine import without_paths


def reason(instance: dg.DagsterInstance, key: str, run_id: str) -> str:
    """Why a run has failed a job, in the words of its steps, else of Dagster."""
    reasons, last = [], "the run's process ended; its log says more"
    kinds = {dg.DagsterEventType.STEP_FAILURE, dg.DagsterEventType.RUN_FAILURE}
    for event in instance.all_logs(run_id, of_type=kinds):
        happened = event.dagster_event
        if happened and happened.is_step_failure:
            failure = happened.step_failure_data
            said = failure.user_failure_data and failure.user_failure_data.description
            reasons += (said or (failure.error.message.strip() if failure.error else "")).splitlines()
        elif happened and happened.message:
            last = happened.message
    # A run of several jobs has a line for each that failed.
    mine = [line for line in reasons if line.startswith(f"{key}: ")]
    return without_paths("\n".join(mine or reasons) or last)


def log(instance: dg.DagsterInstance, run_id: str) -> Iterator[str]:
    """The run's events as lines of text: time, step, message."""
    cursor = None
    while True:
        page = instance.get_records_for_run(run_id, cursor=cursor, limit=500)
        for record in page.records:
            entry = record.event_log_entry
            step = f"{entry.step_key}: " if entry.step_key else ""
            text = entry.message or entry.user_message or (entry.dagster_event_type or "").lower()
            happened = entry.dagster_event
            if happened and happened.is_step_failure and (data := happened.step_failure_data):
                said = data.user_failure_data and data.user_failure_data.description
                text += "\n" + (said or (data.error.to_string() if data.error else ""))
            time = datetime.fromtimestamp(entry.timestamp, UTC).isoformat(timespec="milliseconds")
            yield without_paths(f"{time} {step}{text.rstrip()}") + "\n"
        if not page.has_more:
            return
        cursor = page.cursor
