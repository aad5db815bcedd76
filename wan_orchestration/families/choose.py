"""The place that tells model families apart: by name, by a snapshot's folder, by a repository."""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path

from wan_orchestration.families.animate.family import ANIMATE
from wan_orchestration.families.animate_2.family import ANIMATE_2
from wan_orchestration.families.family import Family

FAMILIES: Mapping[str, Family] = {family.name: family for family in (ANIMATE, ANIMATE_2)}

FIRST = ANIMATE
"""What settings mean as long as it is open which family a job needs."""


def family_of(model: str) -> Family:
    """The family that `GenerateSettings.model` names; FIRST for "auto"."""
    return FAMILIES.get(model, FIRST)


def configured(checkpoint_dir: Path | None, model_id: str) -> Family:
    """The family of the snapshot in a folder, or else of a repository; FIRST if they do not tell."""
    for family in FAMILIES.values():
        if checkpoint_dir is None:
            known = any(model_id in repositories for repositories in family.repositories.values())
        else:
            names = [entry.name for entry in checkpoint_dir.iterdir()] if checkpoint_dir.is_dir() else []
            signs = [sign for layout in family.layouts.values() for sign in layout.signs if family is not FIRST]
            known = any(fnmatchcase(name, sign) for name in names for sign in signs)
        if known:
            return family
    return FIRST
