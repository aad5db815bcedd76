"""How steps fail: in words, and tried again only where that can help."""

from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from wan_orchestration.errors import BadInput

RETRIES = 2
WAIT_SECONDS = 5


@contextmanager
def failures_in_words(context: dg.AssetExecutionContext, *may_pass: type[Exception]) -> Iterator[None]:
    """BadInput fails the step at once; after an error of the kinds that may pass the step is tried again, twice.

    This stands in for a retry policy, because Dagster's repeats a cancelled step as well.
    """
    try:
        yield
    except BadInput as error:
        raise dg.Failure(str(error), allow_retries=False) from None
    except may_pass as error:
        if context.retry_number < RETRIES:
            raise dg.RetryRequested(max_retries=RETRIES, seconds_to_wait=WAIT_SECONDS) from error
        raise dg.Failure(str(error), allow_retries=False) from error
