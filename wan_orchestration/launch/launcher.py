"""What assets ask for: the worker run somewhere, and what it had to say."""

from abc import ABC, abstractmethod
from collections.abc import Generator

import dagster as dg

from wan_orchestration.protocol.messages import PreprocessOutcome, PreprocessRequest, Request, Result

WORKER = "wan_orchestration.worker"


class WorkerDied(RuntimeError):
    """The worker ended, or was ended, without an outcome for every job.

    Args:
        text: why, in words.
        job: the one that was at work.
        again: whether another try may help; it goes on after the last finished clip.
    """

    def __init__(self, text: str, job: str, again: bool = True) -> None:
        super().__init__(text)
        self.job = job
        self.again = again


class Launcher(dg.ConfigurableResource, ABC):
    """Runs `wan_orchestration.worker` in processes of its own. Whatever ends the step ends them too."""

    @abstractmethod
    def generate(self, context: dg.AssetExecutionContext, request: Request) -> Generator[Result]:
        """Run a request's tasks in one launch, and give each result as it comes, also those of tasks that failed.

        Close the iterator (`contextlib.closing`) to end the launch early. Progress goes to the Dagster log.

        Raises:
            WorkerDied: the worker ended without a result for every task, or hung.
            dg.Failure: it could not be launched.
        """

    @abstractmethod
    def preprocess(self, context: dg.AssetExecutionContext, request: PreprocessRequest) -> PreprocessOutcome:
        """Make a job's clips in a single process.

        Raises:
            WorkerDied: the worker ended without an outcome, or hung.
            dg.Failure: it could not be launched.
        """
