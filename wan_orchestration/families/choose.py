"""The place that tells model families apart: by name, by a snapshot's folder, by a repository."""

from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase
from pathlib import Path

from wan_orchestration.families.animate.family import ANIMATE
from wan_orchestration.families.animate_2.family import ANIMATE_2
from wan_orchestration.families.family import Family, LayoutName

FAMILIES: Mapping[str, Family] = {family.name: family for family in (ANIMATE, ANIMATE_2)}

FIRST = ANIMATE
"""What settings mean as long as it is open which family a job needs."""


def family_of(model: str) -> Family:
    """The family that `GenerateSettings.model` names; FIRST for "auto"."""
    return FAMILIES.get(model, FIRST)


def recognise(paths: Collection[str]) -> tuple[Family, LayoutName] | None:
    """The family and layout of a snapshot with these paths: a folder's top level, or a listing of all files."""
    # Later families first: their snapshots also have files by which earlier ones are recognised.
    for family in reversed(list(FAMILIES.values())):
        for name, layout in reversed(list(family.layouts.items())):
            if any(fnmatchcase(path, sign) for sign in layout.signs for path in paths):
                return family, name
    return None


def recognise_folder(path: Path | None) -> tuple[Family, LayoutName] | None:
    """The family and layout of the snapshot in a folder; None if there is none."""
    return recognise({entry.name for entry in path.iterdir()}) if path and path.is_dir() else None


def configured(checkpoint_dir: Path | None, model_id: str, downloaded: Path | None = None) -> Family:
    """The family of the configured weights; FIRST if nothing tells.

    Args:
        checkpoint_dir: WAN_CHECKPOINT_DIR, a snapshot. It counts before the repository.
        model_id: WAN_MODEL_ID, a repository.
        downloaded: the folder of its download, which tells what a repository of an unknown name holds.
    """
    if checkpoint_dir is None:
        for family in FAMILIES.values():
            if any(model_id in repositories for repositories in family.repositories.values()):
                return family
    recognised = recognise_folder(checkpoint_dir or downloaded)
    return recognised[0] if recognised else FIRST
