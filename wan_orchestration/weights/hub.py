"""Finds the snapshot of a model family, and downloads it from ModelScope if it is missing.

Downloads go to `WAN_MODELS_ROOT/<owner>--<name>/<revision>/`. A download is complete when it has a manifest, which is
written last, after the size and SHA-256 of every file agreed with the hub's listing. An interrupted download is
resumed, in the same call or in the next one.

The client is ModelScope's own `modelscope_hub`, which `modelscope.snapshot_download` calls too. Called directly, it
takes the listing that was checked here: it fetches only these files and compares each with its listed hash. This also
avoids importing `modelscope`, which imports torch.
"""

import fcntl
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from wan_orchestration.errors import BadInput
from wan_orchestration.families.choose import FIRST, configured, family_of, recognise
from wan_orchestration.families.family import Family, Layout
from wan_orchestration.files import sha256
from wan_orchestration.settings.environment import Environment
from wan_orchestration.weights.download_errors import DownloadError, explain
from wan_orchestration.weights.manifest import MANIFEST, FileEntry, Manifest
from wan_orchestration.weights.repository import (
    ListedFile,
    Log,
    Repository,
    layout_of,
    list_files,
    open_repository,
    select_files,
)
from wan_orchestration.weights.snapshot import Contents, Snapshot, look_into, open_snapshot
from wan_orchestration.weights.transfer import check_space, fetch

DEFAULT_REVISION = Environment.model_fields["model_revision"].default
"""Of repositories other than WAN_MODEL_ID."""

_log = logging.getLogger(__name__).info


def resolve(
    env: Environment,
    log: Log = _log,
    allow_download: bool = True,
    verify: bool = False,
    model: str = "auto",
    variant: str | None = None,
) -> Snapshot:
    """The snapshot of a model family: WAN_CHECKPOINT_DIR if it is one, else a complete download, else a new one.

    Downloads come from WAN_MODEL_ID if it holds the family and the variant, else from the family's own repositories.
    Nothing is downloaded of the family that WAN_CHECKPOINT_DIR holds.
    A complete download is used without asking the hub: only `download` looks up whether a branch has moved. `verify`
    first compares every byte with its SHA-256 (minutes for the 14B weights); a damaged file counts as missing.

    Args:
        model: as in GenerateSettings; "auto" is the family of the configured weights.
        variant: the checkpoint. None: one that is there, or else the family's first.

    Raises BadInput, and DownloadError if it downloads.
    """
    usual = _configured(env)
    family = usual if model == "auto" else family_of(model)
    variant = variant and family.variant(variant)
    reason, has = "", []
    if env.checkpoint_dir is not None:
        try:
            contents = look_into(env.checkpoint_dir)
            reason, has = _why_not(contents, family, variant), contents.variants
            if not reason:
                return open_snapshot(env.checkpoint_dir, variant=variant)
        except BadInput as error:
            raise BadInput(f"WAN_CHECKPOINT_DIR: {error}") from None
    sources, damages = _sources(env, family, variant), []
    for source in sources:
        for one in [variant] if variant else family.variants:
            damages.append(_damage(source, family, one, verify))
            if damages[-1] is None:
                return open_snapshot(_folder(source), variant=one)
    source, damage = sources[0], damages[0]
    needs = f"this job needs {_name(family, variant)}, but WAN_CHECKPOINT_DIR {reason}; " if reason else ""
    if reason and variant and family is usual:
        raise BadInput(
            f"{needs}set variant: {has[0]}, or set WAN_CHECKPOINT_DIR to weights with {variant}, or leave it out to "
            "download them"
        )
    if allow_download:
        if Manifest.read(_folder(source)):
            log(f"{damage}; downloading what is missing")
        return download(source, log, None if model == "auto" else family, variant)
    how = "" if family is usual else f" with model: {family.name}"
    how += f" and variant: {variant}" if variant not in (None, family.variants[0]) else ""
    raise BadInput(
        f"{needs}{_folder(source)} is not a complete snapshot of {source.model_id}: {damage}. Materialize "
        f"`weight_snapshot`{how} to download it, or set WAN_CHECKPOINT_DIR to a snapshot that you have"
    )


def local_snapshot(env: Environment) -> Path | None:
    """The folder of the snapshot that may have networks for preprocessing, if it is on disk; else None.

    They come with the first family. Downloads nothing; trusts WAN_CHECKPOINT_DIR.
    """
    if env.checkpoint_dir is not None and _configured(env) is FIRST:
        return env.checkpoint_dir
    for source in _sources(env, FIRST, None):
        if _damage(source, FIRST, FIRST.variants[0]) is None:
            return _folder(source)
    return None


def download(env: Environment, log: Log = _log, family: Family | None = None, variant: str | None = None) -> Snapshot:
    """Downloads the files of WAN_MODEL_ID at WAN_MODEL_REVISION that the pipeline reads, and checks them.

    Files that are there already are hashed, not fetched again. If two processes download the same snapshot, the
    second waits for the first. Raises BadInput and DownloadError.

    Args:
        family: the one that is wanted; None: whichever the repository holds.
        variant: the checkpoint; None: the family's first, or the only one that the repository holds. Others that the
            folder has already are kept.
    """
    from modelscope_hub.errors import HubError

    folder = _folder(env)
    try:
        with open_repository(env, log) as repository:
            listing = list_files(repository)
            family, layout = layout_of(repository, listing, family)
            wanted = select_files(repository, listing, layout, family.variant(variant or ""), log)
            folder.mkdir(parents=True, exist_ok=True)
            with _download_lock(folder, log) as waited:
                if layout.mark:
                    fetch(repository, folder, {layout.mark.file: wanted[layout.mark.file]}, log)
                    contents = look_into(folder)
                    if reason := _why_not(contents, family, variant):
                        raise BadInput(f"WAN_MODEL_ID: {repository} {reason}, but {_name(family, variant)} is wanted")
                    (variant,) = contents.variants
                variant = family.variant(variant or "")
                if waited and _damage(env, family, variant) is None:
                    return open_snapshot(folder, variant=variant)
                check_space(folder, wanted)
                others = _files_of_others(folder, family, layout, variant, wanted)
                if not others:
                    (folder / MANIFEST).unlink(missing_ok=True)
                fetch(repository, folder, wanted, log)
                open_snapshot(folder, variant=variant)
                _manifest(repository, folder, wanted, others).write(folder)
                log(f"{folder} is complete: {len(wanted)} files agree with the hub's listing")
                return open_snapshot(folder, variant=variant)
    except (HubError, OSError) as error:
        raise explain(error, env, folder) from error


def _configured(env: Environment) -> Family:
    return configured(env.checkpoint_dir, env.model_id, env.download_folder)


def _name(family: Family, variant: str | None) -> str:
    return f"{family.title} ({variant})" if variant and len(family.variants) > 1 else family.title


def _why_not(contents: Contents, family: Family, variant: str | None) -> str:
    """Why a snapshot is not of this family and variant; empty if it is, or if its transformer is missing."""
    if contents.family is not family:
        return f"is a snapshot of {contents.family.title}"
    if variant and contents.variants and variant not in contents.variants:
        return f"is a snapshot of {_name(family, contents.variants[0])}"
    return ""


def _sources(env: Environment, family: Family, variant: str | None) -> list[Environment]:
    """WAN_MODEL_ID if it holds the family and variant, else the family's own repositories: each in an environment."""
    known = {name for names in family.repositories.values() for name in names}
    fitting = family.repositories[variant] if variant else known
    own = configured(None, env.model_id, env.download_folder)
    if own is family and (env.model_id in fitting or env.model_id not in known):
        return [env]
    variants = [variant] if variant else family.variants
    names = dict.fromkeys(name for one in variants for name in family.repositories[one])
    return [env.model_copy(update={"model_id": name, "model_revision": DEFAULT_REVISION}) for name in names]


def _damage(env: Environment, family: Family, variant: str, verify: bool = False) -> str | None:
    """Why the download of a repository cannot serve a variant; None if it can. `verify`: see `resolve`."""
    folder = _folder(env)
    manifest = Manifest.read(folder)
    if manifest is None:
        return "it was never downloaded completely"
    found = recognise(manifest.files)
    if found is None or found[0] is not family:
        return f"it is not of {family.title}"
    layout = family.layouts[found[1]]
    if not all(manifest.only([pattern]).files for pattern in layout.needed[variant]):
        return f"{_name(family, variant)} was never downloaded completely"
    damage = manifest.only((*layout.needed[variant], *layout.optional)).damage(folder, verify)
    return damage or _why_not(look_into(folder), family, variant) or None


def _files_of_others(
    folder: Path, family: Family, layout: Layout, variant: str, wanted: Mapping[str, ListedFile]
) -> dict[str, FileEntry]:
    """The complete files that only other variants need; none if a file that they share has changed on the hub."""
    manifest = Manifest.read(folder)
    if manifest is None:
        return {}
    manifest = manifest.only({pattern for one in family.variants if one != variant for pattern in layout.needed[one]})
    for name, listed in wanted.items():
        entry = manifest.files.get(name)
        if entry and (entry.size != listed.size or listed.sha256 not in (None, entry.sha256)):
            return {}
    if manifest.damage(folder):
        return {}
    return {name: entry for name, entry in manifest.files.items() if name not in wanted}


def _folder(env: Environment) -> Path:
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", env.model_id):
        raise BadInput(f"WAN_MODEL_ID: {env.model_id!r} is not a repository name; expected owner/name")
    if not re.fullmatch(r"\w[\w./+-]*", env.model_revision):
        raise BadInput(
            f"WAN_MODEL_REVISION: {env.model_revision!r} is not a revision; expected a branch, tag or commit"
        )
    return env.download_folder


@contextmanager
def _download_lock(folder: Path, log: Log) -> Iterator[bool]:
    """Holds the lock on a download. Yields whether it had to wait for another process."""
    with folder.with_name(f".{folder.name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            waited = False
        except BlockingIOError:
            log(f"another process is downloading {folder}; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
            waited = True
        yield waited


def _manifest(
    repository: Repository, folder: Path, wanted: Mapping[str, ListedFile], others: Mapping[str, FileEntry]
) -> Manifest:
    """The manifest of a finished download. The client has already compared each file with its listed hash."""
    files = dict(others) | {
        name: FileEntry(size=listed.size, sha256=listed.sha256 or sha256(folder / name))
        for name, listed in wanted.items()
    }
    manifest = Manifest(repo=repository.name, endpoint=repository.endpoint, revision=repository.revision, files=files)
    if damage := manifest.damage(folder):
        raise DownloadError(f"{damage}, although it was just downloaded; run again")
    return manifest
