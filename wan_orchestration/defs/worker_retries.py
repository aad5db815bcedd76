"""Launches that survive a crash: a job whose worker died is launched again, up to twice."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing

import dagster as dg

from wan_orchestration.defs.failures import RETRIES, WAIT_SECONDS
from wan_orchestration.errors import BadInput
from wan_orchestration.launch.launcher import Launcher, WorkerDied
from wan_orchestration.protocol.messages import PreprocessRequest, PreprocessResult, Request, Result


def generate(context: dg.AssetExecutionContext, launcher: Launcher, request: Request) -> Iterator[Result]:
    """Yields each task's result as soon as it is known.

    If a worker dies or its ranks lose each other, launches its task again, together with the tasks that have not begun.
    A task fails after its last retry, and the others continue without it.
    """
    pending = {task.job_id: task for task in request.tasks}
    crashes: Counter[str] = Counter()
    while pending:
        try:
            left = request.model_copy(update={"tasks": list(pending.values())})
            with closing(launcher.generate(context, left)) as results:
                for result in results:
                    if result.may_pass and _retries(context, WorkerDied(str(result.error), result.job_id), crashes):
                        continue
                    del pending[result.job_id]
                    yield result
            if pending:
                time.sleep(WAIT_SECONDS)
        except WorkerDied as error:
            if _retries(context, error, crashes):
                time.sleep(WAIT_SECONDS)
            else:
                task = pending.pop(error.job)
                yield Result(
                    job_id=task.job_id,
                    status="failed",
                    created_at=task.created_at,
                    settings=task.settings,
                    error=str(error),
                )


def preprocess(context: dg.AssetExecutionContext, launcher: Launcher, request: PreprocessRequest) -> PreprocessResult:
    """Makes one job's clips; retries if the worker dies.

    Raises:
        BadInput: the job's inputs or settings cannot be used.
        dg.Failure: anything else went wrong.
    """
    crashes: Counter[str] = Counter()
    while True:
        try:
            outcome = launcher.preprocess(context, request)
        except WorkerDied as error:
            if not _retries(context, error, crashes):
                raise dg.Failure(str(error), allow_retries=False) from error
            time.sleep(WAIT_SECONDS)
            continue
        if outcome.result:
            return outcome.result
        if outcome.bad_input:
            raise BadInput(outcome.error or "")
        raise dg.Failure(outcome.error or "failed without a reason", allow_retries=False)


def _retries(context: dg.AssetExecutionContext, error: WorkerDied, crashes: Counter[str]) -> bool:
    """Counts the crash. True if the job is to be launched again."""
    crashes[error.job] += 1
    retries = error.retryable and crashes[error.job] <= RETRIES
    if retries:
        context.log.warning(f"{error} The job is launched again; its finished segments are kept.")
    return retries
