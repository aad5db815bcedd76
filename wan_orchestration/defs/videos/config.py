"""The launchpad's form for a video, made from the settings model, so that each setting is described once."""

import enum
from typing import Any, Literal, get_args, get_origin

import dagster as dg
from pydantic import BaseModel, Field, create_model
from pydantic.fields import FieldInfo

from wan_orchestration.settings import GenerateSettings


def optional_fields(model: type[BaseModel]) -> type[dg.Config]:
    """A Dagster config with the fields of a model, each with its description and None where it is left out."""
    fields: dict[str, Any] = {
        name: (
            _config_type(name, field) | None,
            Field(None, description=f"{field.description} Default: {field.get_default(call_default_factory=True)!r}."),
        )
        for name, field in model.model_fields.items()
    }
    return create_model("Optional" + model.__name__, __base__=dg.Config, **fields)


def _config_type(name: str, field: FieldInfo) -> Any:
    """What Dagster's config knows in place of a field's type: it has enums for literals of text, none for numbers."""
    if get_origin(field.annotation) is not Literal:
        return field.annotation
    choices = get_args(field.annotation)
    if all(isinstance(choice, str) for choice in choices):
        return enum.Enum(name, {choice: choice for choice in choices})
    return type(choices[0])


class GenerateConfig(optional_fields(GenerateSettings)):
    """Settings for one run; those left out come from `job.yaml`, the environment and the defaults."""

    def given(self) -> dict[str, Any]:
        """The settings that were filled in, by name."""
        values = {name: getattr(self, name) for name in type(self).model_fields}
        return {
            name: value.value if isinstance(value, enum.Enum) else value
            for name, value in values.items()
            if value is not None
        }
