"""Default values in words, with those that depend on the model family."""

from collections.abc import Callable
from typing import Any

from pydantic import BaseModel

from wan_orchestration.families.choose import FAMILIES
from wan_orchestration.families.family import Family
from wan_orchestration.settings.generate import GenerateSettings


def default_in_words(model: type[BaseModel], name: str, show: Callable[[Any], str] = repr) -> str:
    """A field's default: `20; of animate-2: 10 (distilled), 40 (base)`. `show` writes a value."""
    default = model.model_fields[name].get_default(call_default_factory=True)
    words = [show(default)]
    if issubclass(model, GenerateSettings):
        words += [
            f"of {family.name}: {_by_variant(family, name, default, show)}"
            for family in FAMILIES.values()
            if any(name in values for values in family.defaults.values())
        ]
    return "; ".join(words)


def _by_variant(family: Family, name: str, default: Any, show: Callable[[Any], str]) -> str:
    values = {variant: show(family.defaults[variant].get(name, default)) for variant in family.variants}
    if len({*values.values()}) == 1:
        return values[family.variants[0]]
    return ", ".join(f"{value} ({variant})" for variant, value in values.items())
