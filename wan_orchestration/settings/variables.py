"""A job's settings where it is taken in: what is given, over `WAN_*` variables, over the defaults."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, create_model
from pydantic_settings import BaseSettings, SettingsConfigDict

from wan_orchestration.errors import validate
from wan_orchestration.settings.generate import GenerateSettings
from wan_orchestration.settings.preprocess import PreprocessSettings

Settings = TypeVar("Settings", GenerateSettings, PreprocessSettings)


class GenerateVariables(GenerateSettings, BaseSettings):
    """Settings whose missing fields come from `WAN_DEFAULT_*` variables."""

    model_config = SettingsConfigDict(env_prefix="WAN_DEFAULT_")


class PreprocessVariables(PreprocessSettings, BaseSettings):
    """Settings whose missing fields come from `WAN_PREPROCESS_*` variables."""

    model_config = SettingsConfigDict(env_prefix="WAN_PREPROCESS_")


def take_in(model: type[Settings], given: Mapping[str, Any], name: Callable[[str], str] = str) -> Settings:
    """A job's settings: what is given, over the environment, over the defaults. BadInput, as by `validate`."""
    variables = GenerateVariables if issubclass(model, GenerateSettings) else PreprocessVariables
    return model.model_validate(validate(variables, given, name).model_dump())


def from_variables(model: type[BaseModel], prefix: str, exclude: set[str]) -> type[BaseSettings]:
    """A model's fields as settings, each with the variable `<prefix><FIELD>`, but for those to leave out."""
    fields: dict[str, Any] = {
        name: (field.annotation, field) for name, field in model.model_fields.items() if name not in exclude
    }
    settings = type("Settings", (BaseSettings,), {"model_config": SettingsConfigDict(env_prefix=prefix)})
    return create_model(model.__name__, __base__=settings, **fields)
