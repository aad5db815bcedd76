"""Command-line flags made from settings models, so that each setting is described once."""

import argparse
from collections.abc import Collection
from pathlib import Path
from types import UnionType
from typing import Any, Literal, NoReturn, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from wan_orchestration.errors import BadInput
from wan_orchestration.settings.defaults import default_in_words

PRECEDENCE = "flags win over job.yaml, job.yaml over WAN_* variables, variables over the defaults"
SHORT_TEXT = 40


class Parser(argparse.ArgumentParser):
    """Raises BadInput for a bad flag."""

    def error(self, message: str) -> NoReturn:
        raise BadInput(message)


# Not pydantic-settings' CliSettingsSource: it splits `--lora a,b` at the comma, reads `[x].safetensors` as JSON, and
# makes flags for all fields or none.
def add_settings(parser: argparse.ArgumentParser, model: type[BaseModel], leave_out: Collection[str] = ()) -> None:
    """Add a flag for each field of a settings model; the value of a flag that is not given is None."""
    group = parser.add_argument_group(f"settings ({PRECEDENCE})")
    for name, field in model.model_fields.items():
        if name not in leave_out:
            default = None if field.get_default() is None else default_in_words(model, name, shorten)
            _add_setting(group, name, field, default)


def given_settings(
    arguments: argparse.Namespace, model: type[BaseModel], leave_out: Collection[str] = ()
) -> dict[str, Any]:
    """The fields of a settings model whose flags were given."""
    values = {name: getattr(arguments, name) for name in model.model_fields if name not in leave_out}
    return {name: value for name, value in values.items() if value is not None}


def flag(field: str) -> str:
    """The flag of a field: `--clip-len` for `clip_len`."""
    return f"--{field.replace('_', '-')}"


def _add_setting(group: argparse._ArgumentGroup, name: str, field: FieldInfo, default: str | None) -> None:
    text = f"{field.description}" + ("" if default is None else f" (default: {default})")
    text = text.replace("%", "%%")
    kind = field.annotation
    if get_origin(kind) is UnionType:
        kind = next(part for part in get_args(kind) if part is not type(None))
    if kind is bool:
        group.add_argument(flag(name), action=argparse.BooleanOptionalAction, default=None, help=text)
    elif get_origin(kind) is Literal:
        choices = get_args(kind)
        group.add_argument(flag(name), type=type(choices[0]), choices=choices, help=text)
    elif get_origin(kind) is list:
        item = "FILE[:STRENGTH]" if name == "lora" else name.upper()
        group.add_argument(flag(name), action="append", metavar=item, help=f"{text}; may be repeated")
    else:
        assert kind in (int, float, str, Path), f"{name}: no flag for {kind}"
        group.add_argument(flag(name), type=kind, metavar=name.upper(), help=text)


def shorten(value: Any) -> str:
    """A default value as the help text shows it."""
    text = str(value)
    return text if len(text) <= SHORT_TEXT else f"{text[: SHORT_TEXT - 1]}…"
