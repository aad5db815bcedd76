"""For tests of private parts of libraries: a failure names the pin that let a new version in."""

import re
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


@contextmanager
def private_part(package: str, file: str) -> Iterator[None]:
    """Turns any failure inside into one that names the package's pin and the file to adapt."""
    try:
        yield
    except Exception as error:
        pins = tomllib.loads(PYPROJECT.read_text())["project"]["dependencies"]
        pin = next(one for one in pins if re.match(rf"{package}[<>=~]", one))
        raise AssertionError(
            f"a private part of {package} is gone or works differently ({type(error).__name__}: {error}). "
            f'Adapt {file}, or tighten the pin "{pin}" in pyproject.toml'
        ) from error
