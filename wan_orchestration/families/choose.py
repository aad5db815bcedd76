"""The place that tells model families apart: by name, by a snapshot's folder, by a repository."""

from collections.abc import Mapping

from wan_orchestration.families.animate.family import ANIMATE
from wan_orchestration.families.animate_2.family import ANIMATE_2
from wan_orchestration.families.family import Family

FAMILIES: Mapping[str, Family] = {family.name: family for family in (ANIMATE, ANIMATE_2)}

FIRST = ANIMATE
"""What settings mean as long as it is open which family a job needs."""


def family_of(model: str) -> Family:
    """The family that `GenerateSettings.model` names; FIRST for "auto"."""
    return FAMILIES.get(model, FIRST)
