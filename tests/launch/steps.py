"""Runs a launcher in a Dagster step, and reads its outcome."""

from contextlib import closing

import dagster as dg

from wan_orchestration.launch.launcher import Launcher, WorkerDied
from wan_orchestration.protocol.messages import Request


def launch(launcher: Launcher, request: Request) -> tuple[Exception | dict[str, str], list[str]]:
    """Generates in a Dagster step. Returns each job's status, or the error that ended the step; and the log's lines."""
    outcome = {}

    @dg.asset
    def launched(context: dg.AssetExecutionContext):
        nonlocal outcome
        try:
            with closing(launcher.generate(context, request)) as results:
                outcome |= {result.job_id: "may pass" if result.may_pass else result.status for result in results}
        except Exception as error:
            outcome = error
        return dg.MaterializeResult()

    with dg.DagsterInstance.ephemeral() as instance:
        run = dg.materialize([launched], instance=instance)
        return outcome, [entry.user_message for entry in instance.all_logs(run.run_id)]


def reason(error: object) -> tuple[str, bool]:
    """An error's text, and whether a retry may help."""
    if isinstance(error, dg.Failure):
        assert error.allow_retries is False
        return error.description or "", False
    assert isinstance(error, WorkerDied)
    return str(error), error.retryable
