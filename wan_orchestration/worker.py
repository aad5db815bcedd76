"""What assets launch under torchrun: reads a request, runs it, and reports over Dagster Pipes from rank 0.

`torchrun -m wan_orchestration.worker REQUEST.json`. The exit code is 0 also where jobs failed: their results say so.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from dagster_pipes import PipesContext, open_dagster_pipes

from wan_orchestration.errors import BadInput
from wan_orchestration.messages import Progress, Request, Result
from wan_orchestration.settings import World

PR_SET_PDEATHSIG = 1


class PipesReporter:
    """Sends what happens to the Dagster step that launched this process."""

    def __init__(self, pipes: PipesContext) -> None:
        self.pipes = pipes

    def log(self, message: str) -> None:
        self.pipes.log.info(message)

    def progress(self, progress: Progress) -> None:
        self.pipes.report_custom_message(progress.model_dump(mode="json"))

    def finished(self, result: Result) -> None:
        self.pipes.report_custom_message(result.model_dump(mode="json"))


def main(argv: Sequence[str]) -> int:
    die_with_parent()
    signal.signal(signal.SIGTERM, leave)
    if World().rank > 0:
        from wan_orchestration.runner import run  # noqa: PLC0415 (torch)

        run(None, None)
        return 0
    request = Request.model_validate_json(Path(argv[0]).read_text())
    with open_dagster_pipes() as pipes:
        reporter = PipesReporter(pipes)
        try:
            from wan_orchestration.runner import run  # noqa: PLC0415 (torch)

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
    return 0


def leave(signum: int, frame: FrameType | None) -> NoReturn:
    """Ends the process by an exception, so that files and locks are left tidy."""
    raise SystemExit(128 + signum)


def die_with_parent() -> None:
    """Have the kernel kill this process when torchrun dies, however that happens. Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == 1:
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
