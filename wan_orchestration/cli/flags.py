"""Command-line flags made from settings models, so that a setting is described once."""

import argparse
from collections.abc import Collection
from pathlib import Path
from types import UnionType
from typing import Any, Literal, NoReturn, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from wan_orchestration.errors import BadInput

PRECEDENCE = "flags win over job.yaml, that over the environment, that over the defaults"


class Parser(argparse.ArgumentParser):
    """Reports a bad flag like any other bad input."""

    def error(self, message: str) -> NoReturn:
        raise BadInput(message)


def add_settings(parser: argparse.ArgumentParser, model: type[BaseModel], leave_out: Collection[str] = ()) -> None:
    """A flag for each field of a settings model; one that is not given is None in the parsed arguments."""
    group = parser.add_argument_group(f"settings ({PRECEDENCE})")
    for name, field in model.model_fields.items():
        if name not in leave_out:
            _add_setting(group, name, field)


def given_settings(arguments: argparse.Namespace, model: type[BaseModel]) -> dict[str, Any]:
    """The fields of a settings model that flags were given for."""
    values = {name: getattr(arguments, name, None) for name in model.model_fields}
    return {name: value for name, value in values.items() if value is not None}


def _add_setting(group: argparse._ArgumentGroup, name: str, field: FieldInfo) -> None:
    flag = "--" + name.replace("_", "-")
    text = f"{field.description} (default: {shorten(field.get_default())})".replace("%", "%%")
    kind = field.annotation
    if get_origin(kind) is UnionType:
        kind = next(part for part in get_args(kind) if part is not type(None))
    if kind is bool:
        group.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=text)
    elif get_origin(kind) is Literal:
        choices = get_args(kind)
        group.add_argument(flag, type=type(choices[0]), choices=choices, help=text)
    elif get_origin(kind) is list:
        group.add_argument(flag, action="append", metavar="FILE[:STRENGTH]", help=f"{text}; may be repeated")
    else:
        assert kind in (int, float, str, Path), f"{name}: no flag for {kind}"
        group.add_argument(flag, type=kind, metavar=name.upper(), help=text)


def shorten(value: Any) -> str:
    """A default for the help text."""
    text = str(value)
    return text if len(text) <= 40 else f"{text[:39]}…"
