"""The launchpad's forms, made from the settings models: each setting is described once."""

import enum
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import dagster as dg
from pydantic import BaseModel, Field, create_model
from pydantic.fields import FieldInfo

from wan_orchestration.settings.defaults import default_in_words
from wan_orchestration.settings.generate import GenerateSettings
from wan_orchestration.settings.preprocess import PreprocessSettings


class OptionalFields(dg.Config):
    """Settings for one run. Fields left out come from `job.yaml`, the environment and the defaults."""

    def given(self) -> dict[str, Any]:
        """The fields that were filled in, by name."""
        values = {name: getattr(self, name) for name in type(self).model_fields}
        return {
            name: value.value if isinstance(value, enum.Enum) else value
            for name, value in values.items()
            if value is not None
        }


def optional_fields(model: type[BaseModel]) -> type[OptionalFields]:
    """A form with a model's fields and descriptions, all optional."""
    fields: dict[str, Any] = {
        name: (
            _config_type(name, field) | None,
            Field(None, description=f"{field.description} Default: {default_in_words(model, name)}."),
        )
        for name, field in model.model_fields.items()
    }
    return create_model("Optional" + model.__name__, __base__=OptionalFields, **fields)


def _config_type(name: str, field: FieldInfo) -> Any:
    """The type in Dagster's config for a field: an enum for literals of text, a plain type otherwise."""
    annotation = _without_none(field.annotation)
    if annotation is Path:
        return str
    if get_origin(annotation) is not Literal:
        return annotation
    choices = get_args(annotation)
    if all(isinstance(choice, str) for choice in choices):
        return enum.Enum(name, {choice: choice for choice in choices})
    return type(choices[0])


def _without_none(annotation: Any) -> Any:
    if get_origin(annotation) in (Union, UnionType):
        (annotation,) = (choice for choice in get_args(annotation) if choice is not type(None))
    return annotation


class GenerateConfig(optional_fields(GenerateSettings)):
    """How this run generates videos. Fields left out come from `job.yaml`, the environment, the defaults."""


class PreprocessConfig(optional_fields(PreprocessSettings)):
    """How this run makes clips. Fields left out come from `job.yaml`, the environment, the defaults."""
