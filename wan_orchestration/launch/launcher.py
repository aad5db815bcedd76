"""What assets ask for: the worker run somewhere, and what it had to say."""

from abc import ABC, abstractmethod
from collections.abc import Iterator

import dagster as dg

from wan_orchestration.messages import PreprocessOutcome, PreprocessRequest, Request, Result


class Launcher(dg.ConfigurableResource, ABC):
    """Runs `wan_orchestration.worker` in processes of its own. Whatever ends the step ends them too."""

    @abstractmethod
    def generate(self, context: dg.AssetExecutionContext, request: Request) -> Iterator[Result]:
        """Run a request's tasks in one launch, and give each result as it comes, also those of tasks that failed.

        Close the iterator (`contextlib.closing`) to end the launch early. Progress goes to the Dagster log.

        Raises:
            dg.Failure: the worker ended without a result for every task, or hung.
        """

    @abstractmethod
    def preprocess(self, context: dg.AssetExecutionContext, request: PreprocessRequest) -> PreprocessOutcome:
        """Make a job's clips in a single process.

        Raises:
            dg.Failure: the worker ended without an outcome, or hung.
        """
