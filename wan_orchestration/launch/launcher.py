"""The interface through which assets run the worker, whether on this machine or on a cluster."""

from abc import ABC, abstractmethod
from collections.abc import Generator

import dagster as dg

from wan_orchestration.protocol.messages import PreprocessOutcome, PreprocessRequest, Request, Result

WORKER, KEEPER = "wan_orchestration.worker", "wan_orchestration.launch.keeper"


class WorkerDied(RuntimeError):
    """The worker ended, or was killed, before every job had an outcome.

    Args:
        text: the reason, for the user.
        job: the job that the worker was working on.
        retryable: whether a retry may help; it resumes after the last finished segment.
    """

    def __init__(self, text: str, job: str, retryable: bool = True) -> None:
        super().__init__(text)
        self.job = job
        self.retryable = retryable


class Launcher(dg.ConfigurableResource, ABC):
    """Runs `wan_orchestration.worker` in launches: processes that end with the run, or stay warm for later runs.

    If the step is killed, what it asked for is cancelled on this machine; a Slurm job keeps working until a later step
    takes it over.
    """

    @abstractmethod
    def generate(self, context: dg.AssetExecutionContext, request: Request) -> Generator[Result]:
        """Run a request's tasks. Yields each result when it arrives, those of failed tasks included.

        Close the iterator (`contextlib.closing`) to cancel the request. Logs the progress to Dagster.

        Raises:
            WorkerDied: the worker ended without a result for every task, or hung.
            dg.Failure: the worker could not be launched.
        """

    @abstractmethod
    def preprocess(self, context: dg.AssetExecutionContext, request: PreprocessRequest) -> PreprocessOutcome:
        """Make a job's clips on one device.

        Raises:
            WorkerDied: the worker ended without an outcome, or hung.
            dg.Failure: the worker could not be launched.
        """
