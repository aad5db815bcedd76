"""Fills the settings that a job leaves out from `WAN_*` variables."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, create_model
from pydantic_settings import BaseSettings, SettingsConfigDict

from wan_orchestration.errors import validate
from wan_orchestration.settings.generate import GenerateSettings
from wan_orchestration.settings.preprocess import PreprocessSettings

Settings = TypeVar("Settings", GenerateSettings, PreprocessSettings)


class GenerateVariables(GenerateSettings, BaseSettings):
    """Settings whose missing fields are read from `WAN_DEFAULT_*` variables."""

    model_config = SettingsConfigDict(env_prefix="WAN_DEFAULT_")


class PreprocessVariables(PreprocessSettings, BaseSettings):
    """Settings whose missing fields are read from `WAN_PREPROCESS_*` variables."""

    model_config = SettingsConfigDict(env_prefix="WAN_PREPROCESS_")


def with_variables(model: type[Settings], given: Mapping[str, Any], name: Callable[[str], str] = str) -> Settings:
    """A job's settings: given values win over `WAN_*` variables, and variables over the defaults.

    See `validate` for `name` and BadInput.
    """
    with_environment = GenerateVariables if issubclass(model, GenerateSettings) else PreprocessVariables
    return model.model_validate(validate(with_environment, given, name).model_dump(exclude_unset=True))


def variables_model(model: type[BaseModel], prefix: str, exclude: set[str]) -> type[BaseSettings]:
    """A settings class with the fields of `model` except `exclude`, each read from the variable `<prefix><FIELD>`."""
    fields: dict[str, Any] = {
        name: (field.annotation, field) for name, field in model.model_fields.items() if name not in exclude
    }
    settings = type("Settings", (BaseSettings,), {"model_config": SettingsConfigDict(env_prefix=prefix)})
    return create_model(model.__name__, __base__=settings, **fields)
