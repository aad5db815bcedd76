"""Finds the snapshot that the environment names, and downloads it from ModelScope if it is missing.

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
from urllib.parse import quote

from wan_orchestration.errors import BadInput
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
from wan_orchestration.weights.snapshot import Snapshot, open_snapshot
from wan_orchestration.weights.transfer import check_space, fetch

_log = logging.getLogger(__name__).info


def resolve(env: Environment, log: Log = _log, allow_download: bool = True, verify: bool = False) -> Snapshot:
    """The snapshot to use: WAN_CHECKPOINT_DIR as it is, else the complete download, else a new download.

    A complete download is used without asking the hub: only `download` looks up whether a branch has moved. `verify`
    first compares every byte with its SHA-256 (minutes for the 14B weights); a damaged file counts as missing.
    Raises BadInput, and DownloadError if it downloads.
    """
    if env.checkpoint_dir is not None:
        try:
            return open_snapshot(env.checkpoint_dir)
        except BadInput as error:
            raise BadInput(f"WAN_CHECKPOINT_DIR: {error}") from None
    folder = _folder(env)
    manifest = Manifest.read(folder)
    damage = manifest.damage(folder, verify) if manifest else "it was never downloaded completely"
    if damage is None:
        return open_snapshot(folder)
    if allow_download:
        if manifest:
            log(f"{damage}; downloading it again")
        return download(env, log)
    raise BadInput(
        f"{folder} is not a complete snapshot of {env.model_id}: {damage}. Materialize `weight_snapshot` to download "
        "it, or set WAN_CHECKPOINT_DIR to a snapshot that you have"
    )


def local_snapshot(env: Environment) -> Path | None:
    """The folder of the snapshot if it is on disk, else None. Downloads nothing; trusts WAN_CHECKPOINT_DIR."""
    if env.checkpoint_dir is not None:
        return env.checkpoint_dir
    folder = _folder(env)
    manifest = Manifest.read(folder)
    return folder if manifest and manifest.damage(folder) is None else None


def download(env: Environment, log: Log = _log) -> Snapshot:
    """Downloads the files of WAN_MODEL_ID at WAN_MODEL_REVISION that the pipeline reads, and checks them.

    Files that are there already are hashed, not fetched again. If two processes download the same snapshot, the
    second waits for the first. Raises BadInput and DownloadError.
    """
    from modelscope_hub.errors import HubError

    folder = _folder(env)
    try:
        with open_repository(env, log) as repository:
            listing = list_files(repository)
            family, layout = layout_of(repository, listing, None)
            wanted = select_files(repository, listing, layout, family.variants[0], log)
            folder.mkdir(parents=True, exist_ok=True)
            with _download_lock(folder, log) as waited:
                if waited and (manifest := Manifest.read(folder)) and manifest.damage(folder) is None:
                    return open_snapshot(folder)
                check_space(folder, wanted)
                (folder / MANIFEST).unlink(missing_ok=True)
                fetch(repository, folder, wanted, log)
                open_snapshot(folder)
                _manifest(repository, folder, wanted).write(folder)
                log(f"{folder} is complete: {len(wanted)} files agree with the hub's listing")
                return open_snapshot(folder)
    except (HubError, OSError) as error:
        raise explain(error, env, folder) from error


def _folder(env: Environment) -> Path:
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", env.model_id):
        raise BadInput(f"WAN_MODEL_ID: {env.model_id!r} is not a repository name; expected owner/name")
    if not re.fullmatch(r"\w[\w./+-]*", env.model_revision):
        raise BadInput(
            f"WAN_MODEL_REVISION: {env.model_revision!r} is not a revision; expected a branch, tag or commit"
        )
    assert env.models_root is not None
    return env.models_root / env.model_id.replace("/", "--") / quote(env.model_revision, safe="")


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


def _manifest(repository: Repository, folder: Path, wanted: Mapping[str, ListedFile]) -> Manifest:
    """The manifest of a finished download. The client has already compared each file with its listed hash."""
    files = {
        name: FileEntry(size=listed.size, sha256=listed.sha256 or sha256(folder / name))
        for name, listed in wanted.items()
    }
    manifest = Manifest(repo=repository.name, endpoint=repository.endpoint, revision=repository.revision, files=files)
    if damage := manifest.damage(folder):
        raise DownloadError(f"{damage}, although it was just downloaded; run again")
    return manifest
