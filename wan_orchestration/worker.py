"""The worker, which steps launch: reads a request and runs it. Rank 0 reports over Dagster Pipes.

`torchrun -m wan_orchestration.worker REQUEST.json` generates videos; without torchrun it makes one job's clips.
The exit code is 0 even if jobs failed; their results have the errors.
"""

import ctypes
import faulthandler
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from dagster_pipes import PipesContext, open_dagster_pipes

from wan_orchestration.errors import BadInput
from wan_orchestration.protocol.leases import hold
from wan_orchestration.protocol.messages import (
    AnyRequest,
    FinishedSegment,
    PreprocessOutcome,
    PreprocessProgress,
    PreprocessRequest,
    Progress,
    Request,
    Result,
)
from wan_orchestration.settings.environment import World

PR_SET_PDEATHSIG = 1
PROGRESS_SECONDS = 1.0


class PipesReporter:
    """Sends messages to the Dagster step that launched this process."""

    def __init__(self, pipes: PipesContext) -> None:
        self.pipes = pipes
        self._lock = threading.Lock()  # another thread sends progress

    def log(self, message: str) -> None:
        with self._lock:
            self.pipes.log.info(message)

    def progress(self, progress: Progress) -> None:
        self._send(progress)

    def segment(self, segment: FinishedSegment) -> None:
        self._send(segment)

    def finished(self, result: Result) -> None:
        self._send(result)

    def _send(self, message: Progress | FinishedSegment | Result) -> None:
        with self._lock:
            self.pipes.report_custom_message(message.model_dump(mode="json"))


def main(argv: Sequence[str]) -> int:
    """Run the request on rank 0, or follow rank 0. Returns the exit code."""
    world, file = World(), Path(argv[0])
    hold(world.leases)
    signal.signal(signal.SIGTERM, leave)
    write_stacks_on_demand(file.parent / f"stacks-{world.rank}-{os.getpid()}.txt")
    if world.rank > 0:
        follow()
        return 0
    request = AnyRequest.validate_json(file.read_bytes())
    with open_dagster_pipes() as pipes:
        if isinstance(request, PreprocessRequest):
            pipes.report_custom_message(preprocess(request, pipes).model_dump(mode="json"))
        else:
            generate(request, PipesReporter(pipes))
    return 0


def follow() -> None:
    """Take part in rank 0's tasks, on every other rank."""
    die_with_torchrun()
    from wan_orchestration.generate.runner import run  # noqa: PLC0415 (torch)

    run(None, None)


def generate(request: Request, reporter: PipesReporter) -> None:
    """Run a request's tasks, and report a result for each, even if none can be run."""
    die_with_torchrun()
    # Importing the engine takes seconds.
    reporter.progress(Progress(job_id=request.tasks[0].job_id, phase="starting"))
    from wan_orchestration.generate.runner import run  # noqa: PLC0415 (torch)

    try:
        run(request, reporter)
    except BadInput as error:
        for task in request.tasks:
            reporter.finished(
                Result(
                    job_id=task.job_id,
                    status="failed",
                    created_at=task.created_at,
                    settings=task.settings,
                    error=str(error),
                    bad_input=True,
                )
            )


def preprocess(request: PreprocessRequest, pipes: PipesContext) -> PreprocessOutcome:
    """Make a job's clips, and report progress about once a second."""
    from wan_orchestration.preprocess import pipeline  # noqa: PLC0415 (OpenCV and the estimators)

    outcome = PreprocessOutcome(job_id=request.job_id)
    reported = float("-inf")

    def report(phase: str, done: int, total: int) -> None:
        nonlocal reported
        if time.monotonic() - reported >= PROGRESS_SECONDS or done == total:
            reported = time.monotonic()
            progress = PreprocessProgress(job_id=request.job_id, phase=phase, done=done, total=total)
            pipes.report_custom_message(progress.model_dump(mode="json"))

    try:
        outcome.result = pipeline.preprocess(
            request.driving,
            request.reference,
            request.output,
            request.settings,
            snapshot=request.snapshot,
            models_root=request.models_root,
            log=pipes.log.info,
            progress=report,
        )
    except BadInput as error:
        outcome.error, outcome.bad_input = str(error), True
    except Exception as error:
        pipes.log.error(traceback.format_exc())
        outcome.error = f"{type(error).__name__}: {error}"
    return outcome


def write_stacks_on_demand(file: Path) -> None:
    """Make SIGUSR1 write the stacks of all threads to a file, even if a thread hangs in native code."""
    # The descriptor stays open, because the signal handler writes to it.
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    faulthandler.register(signal.SIGUSR1, descriptor)


def leave(signum: int, frame: FrameType | None) -> NoReturn:
    """Handle SIGTERM by raising SystemExit, so that files are closed and locks released."""
    raise SystemExit(128 + signum)


def die_with_torchrun() -> None:
    """Make the kernel kill this process when torchrun dies for any reason. Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == 1:
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
