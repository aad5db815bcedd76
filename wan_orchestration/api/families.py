"""Describes the model families for clients: which there are, and which settings apply to them."""

from typing import Any

from wan_orchestration.api.models import Families, FamilyInfo, VariantInfo
from wan_orchestration.errors import BadInput
from wan_orchestration.families.choose import FAMILIES, configured
from wan_orchestration.families.family import Family
from wan_orchestration.settings.environment import Environment
from wan_orchestration.settings.generate import GenerateSettings
from wan_orchestration.settings.variables import with_variables
from wan_orchestration.weights import hub

NOT_SHOWN = {"model", "variant", "preset", "lora"}
"""Settings that are left out of the defaults: those that lead to them, and files of the server."""


def families(env: Environment) -> Families:
    """All families, with this server's defaults. BadInput: a `WAN_DEFAULT_*` variable has a bad value."""
    server = with_variables(GenerateSettings, {})
    auto = (
        configured(env.checkpoint_dir, env.model_id, env.download_folder).name
        if server.model == "auto"
        else server.model
    )
    return Families(auto=auto, variant=server.variant, families=[_family(env, family) for family in FAMILIES.values()])


def _family(env: Environment, family: Family) -> FamilyInfo:
    return FamilyInfo(
        name=family.name,
        title=family.title,
        summary=family.summary,
        prompt_example=family.prompt_example,
        variants=[_variant(env, family, variant) for variant in family.variants],
        foreign=sorted(family.foreign),
        foreign_preprocess=sorted(family.foreign_preprocess),
    )


def _variant(env: Environment, family: Family, variant: str) -> VariantInfo:
    def values(**given: str) -> dict[str, Any]:
        chosen = {"model": family.name} | ({} if "variant" in family.foreign else {"variant": variant})
        settings = with_variables(GenerateSettings, chosen | given)
        return settings.model_dump(mode="json", exclude=NOT_SHOWN | family.foreign)

    defaults = values()
    presets = {preset: values(preset=preset) for preset in family.presets[variant]}
    changed = {
        preset: {name: value for name, value in found.items() if value != defaults[name]}
        for preset, found in presets.items()
    }
    return VariantInfo(name=variant, installed=_is_installed(env, family, variant), defaults=defaults, presets=changed)


def _is_installed(env: Environment, family: Family, variant: str) -> bool:
    try:
        hub.resolve(env, allow_download=False, model=family.name, variant=variant)
    except BadInput:
        return False
    return True
