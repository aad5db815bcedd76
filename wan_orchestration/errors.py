"""Errors that are no defect of the program: a user can correct the input, or has cancelled the work."""

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_settings import BaseSettings, SettingsError

M = TypeVar("M", bound=BaseModel)


class BadInput(ValueError):
    """A file, folder or field that a user gave cannot be used.

    The message names the file or field, what was found, what was expected and, if that is not obvious, what to do. It
    is shown without a traceback. The job is not retried.
    """


class Cancelled(Exception):
    """The work was cancelled by whoever asked for it."""


def validate(model: type[M], values: Mapping[str, Any], name: Callable[[str], str] = str) -> M:
    """Returns `model(**values)`, with validation errors put into words.

    Args:
        name: maps a field to the name that the user knows, for instance `clip_len` to `job.yaml: generate.clip_len`
            or `--clip-len`. It gets "" for an error that concerns several fields.

    Raises:
        BadInput: an unknown key, or a bad value, also of a `WAN_*` variable.
    """
    for key in values:
        if key not in model.model_fields:
            raise unknown_key(name(str(key)), str(key), model.model_fields)
    try:
        return model(**values)
    except ValidationError as error:
        prefix = model.model_config.get("env_prefix") if issubclass(model, BaseSettings) else None

        def source(field: str) -> str:
            if prefix and field and field.split(".")[0] not in values:
                return f"environment variable {prefix}{field.upper()}"
            return name(field)

        raise from_validation_error(error, source) from None
    except SettingsError as error:
        raise BadInput(f"WAN_* environment: {error}; expected JSON for a field that holds a list") from None


def from_validation_error(error: ValidationError, name: Callable[[str], str] = str) -> BadInput:
    """The error as a BadInput, with a line for each problem: the field's name, what was found, what was expected."""
    return BadInput("\n".join(_sentence(problem, name) for problem in error.errors(include_url=False)))


def unknown_key(where: str, key: str, known: Iterable[str]) -> BadInput:
    """The error for a key that is not among the known ones.

    Args:
        where: the key as the user knows it.
    """
    known = list(known)
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.75)
    hint = f"did you mean {close[0]}? " if close else ""
    return BadInput(f"{where}: unknown key; {hint}known keys: {', '.join(known)}")


def _sentence(problem: Mapping[str, Any], name: Callable[[str], str]) -> str:
    field = name(".".join(map(str, problem["loc"])))
    if problem["type"] == "missing":
        return f"{field}: missing"
    if problem["type"] == "extra_forbidden":
        return f"{field}: unknown key"
    expected = problem["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
    if not problem["loc"]:
        return f"{field}: {expected}" if field else expected
    found = repr(problem["input"])
    return f"{field}: found {found if len(found) <= 80 else found[:77] + '...'}, {expected}"
