"""Errors that a user can mend."""

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_settings import BaseSettings, SettingsError

M = TypeVar("M", bound=BaseModel)


class BadInput(ValueError):
    """A file, field or folder given from outside cannot be used.

    The message names the file or field, what was found, what was expected and, where it is not
    obvious, what to do. It is shown without a traceback and such a job is never retried.
    """


def validate(model: type[M], values: Mapping[str, Any], name: Callable[[str], str] = str) -> M:
    """`model(**values)` with BadInput for unknown keys and bad values, those from `WAN_*` variables included.

    `name` turns a field (`clip_len`, or the empty string for all of them) into what the user knows it by, such
    as `job.yaml: generate.clip_len` or `--clip-len`.
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
    """A line per problem: the field as `name` calls it, what was found, what is expected."""
    return BadInput("\n".join(_sentence(problem, name) for problem in error.errors(include_url=False)))


def unknown_key(where: str, key: str, known: Iterable[str]) -> BadInput:
    """For a key that no field has."""
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
