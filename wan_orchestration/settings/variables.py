"""Fills the settings that a job leaves out from `WAN_*` variables."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, create_model, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from wan_orchestration.errors import BadInput, validate
from wan_orchestration.families.family import Family
from wan_orchestration.settings.generate import GenerateSettings
from wan_orchestration.settings.preprocess import PreprocessSettings

Settings = TypeVar("Settings", GenerateSettings, PreprocessSettings)


class GenerateVariables(GenerateSettings, BaseSettings):
    """Settings whose missing fields are read from `WAN_DEFAULT_*` variables."""

    model_config = SettingsConfigDict(env_prefix="WAN_DEFAULT_")

    @model_validator(mode="after")
    def _all_apply(self) -> "GenerateVariables":
        """Variables are for all jobs, so some do not apply to a job's family."""
        return self


class PreprocessVariables(PreprocessSettings, BaseSettings):
    """Settings whose missing fields are read from `WAN_PREPROCESS_*` variables."""

    model_config = SettingsConfigDict(env_prefix="WAN_PREPROCESS_")


def read_with_variables(model: type[Settings], given: Mapping[str, Any], name: Callable[[str], str] = str) -> Settings:
    """The given values and, for fields that are left out, `WAN_*` variables, whether or not they apply to a family.

    See `validate` for `name` and BadInput.
    """
    with_environment = GenerateVariables if issubclass(model, GenerateSettings) else PreprocessVariables
    return validate(with_environment, given, name)  # pyright: ignore[reportReturnType]


def with_variables(
    model: type[Settings],
    given: Mapping[str, Any],
    name: Callable[[str], str] = str,
    family: Family | None = None,
) -> Settings:
    """A job's settings: given values win over `WAN_*` variables, and variables over the defaults.

    Variables of fields that do not apply to the job's family are not used: they are for all jobs of a machine.
    `family` defaults to that of `model`, if this is not "auto".

    BadInput: as for `validate`, which explains `name`, or a given value does not apply to the family.
    """
    read = read_with_variables(model, given, name)
    values = read.model_dump(exclude_unset=True)
    if family is None and read.model != "auto":
        family = read.family
    if family is not None:
        foreign = family.foreign if issubclass(model, GenerateSettings) else family.foreign_preprocess
        for field in sorted(foreign & given.keys()):
            if getattr(read, field) != model.model_fields[field].default:
                raise BadInput(
                    f"{name(field)}: found {getattr(read, field)!r}, but it does not apply to model {family.name}; "
                    "leave it out"
                )
        values = {field: value for field, value in values.items() if field in given or field not in foreign}
        values["model"] = family.name
    return validate(model, values, name)


def variables_model(model: type[BaseModel], prefix: str, exclude: set[str]) -> type[BaseSettings]:
    """A settings class with the fields of `model` except `exclude`, each read from the variable `<prefix><FIELD>`."""
    fields: dict[str, Any] = {
        name: (field.annotation, field) for name, field in model.model_fields.items() if name not in exclude
    }
    settings = type("Settings", (BaseSettings,), {"model_config": SettingsConfigDict(env_prefix=prefix)})
    return create_model(model.__name__, __base__=settings, **fields)
