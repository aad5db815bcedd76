"""Errors that a user can mend end a step in words, and are not tried again."""

from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from wan_orchestration.errors import BadInput


@contextmanager
def bad_input_fails() -> Iterator[None]:
    """Turn BadInput into a failure that no retry policy repeats."""
    try:
        yield
    except BadInput as error:
        raise dg.Failure(str(error), allow_retries=False) from None
