"""The weights: the snapshot that the environment names, downloaded from ModelScope when it is not there yet.

A download is `WAN_MODELS_ROOT/<owner>--<name>/<revision>/`. It is complete when its manifest is there: that is written
last, from the hub's listing, after every file's size and SHA-256 agreed with it. An interrupted download goes on where
it stopped, in the same call or in the next one.

The client is ModelScope's own, `modelscope_hub`, which `modelscope.snapshot_download` passes its arguments on to.
Called directly it takes the listing that was checked here, so that nothing but these files is fetched and each is
compared with exactly these hashes, and it does without torch, which `modelscope` imports.
"""

import errno
import fcntl
import logging
import os
import re
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import partial
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote

from wan_orchestration.errors import BadInput
from wan_orchestration.settings.environment import Environment
from wan_orchestration.weights.snapshot import (
    MANIFEST,
    NEEDED,
    OPTIONAL,
    FileEntry,
    Layout,
    Manifest,
    Snapshot,
    inside,
    open_snapshot,
    sha256,
)

if TYPE_CHECKING:
    from modelscope_hub import HubApi

__all__ = ["DownloadError", "Snapshot", "download", "open_snapshot", "resolve"]

Log = Callable[[str], None]

_log = logging.getLogger(__name__).info

REPORT_SECONDS = 5.0
LOCAL_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR}


class Listed(NamedTuple):
    """A file as the hub lists it."""

    size: int
    sha256: str | None


class Repository(NamedTuple):
    """One revision of a repository, and the client that reaches it."""

    api: "HubApi"
    endpoint: str
    name: str
    revision: str

    def __str__(self) -> str:
        return f"{self.name}@{self.revision}"


class DownloadError(RuntimeError):
    """The hub or the line to it failed. Trying again later can help, and goes on where the download stopped.

    What only the user can mend (a wrong repository, no permission, a full disk) is BadInput instead.
    """


def resolve(env: Environment, log: Log = _log, allow_download: bool = True, verify: bool = False) -> Snapshot:
    """The snapshot to use: WAN_CHECKPOINT_DIR as it is, else the complete download, else a new download.

    Offline and instant unless something is to be downloaded: whether a branch has moved since is not looked up, that
    is what `download` does. With `verify` every byte of a download is compared with its SHA-256 first (minutes for
    the 14B weights) and a damaged file counts as missing. Raises BadInput and, only where it downloads, DownloadError.
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
            log(f"{damage}; getting it again")
        return download(env, log)
    raise BadInput(
        f"{folder} is no complete snapshot of {env.model_id}: {damage}. Materialize `weight_snapshot` to download it, "
        "or set WAN_CHECKPOINT_DIR to a snapshot that you have"
    )


def local_snapshot(env: Environment) -> Path | None:
    """The folder of the snapshot that is there, for what can do without one; nothing is downloaded."""
    if env.checkpoint_dir is not None:
        return env.checkpoint_dir
    folder = _folder(env)
    manifest = Manifest.read(folder)
    return folder if manifest and manifest.damage(folder) is None else None


def download(env: Environment, log: Log = _log) -> Snapshot:
    """Download what the pipeline reads of WAN_MODEL_ID at WAN_MODEL_REVISION, checked against the hub's listing.

    Files that are there already are hashed instead of fetched. Of two processes that download the same snapshot the
    second waits for the first. Raises BadInput and DownloadError.
    """
    from modelscope_hub.errors import HubError

    folder = _folder(env)
    try:
        with _repository(env, log) as repository:
            wanted = _select(repository, _listing(repository), log)
            folder.mkdir(parents=True, exist_ok=True)
            with _only_one(folder, log) as waited:
                if waited and (manifest := Manifest.read(folder)) and manifest.damage(folder) is None:
                    return open_snapshot(folder)
                _check_space(folder, wanted)
                (folder / MANIFEST).unlink(missing_ok=True)
                _fetch(repository, folder, wanted, log)
                open_snapshot(folder)
                _manifest(repository, folder, wanted).write(folder)
                log(f"{folder} is complete: {len(wanted)} files agree with the hub's listing")
                return open_snapshot(folder)
    except (HubError, OSError) as error:
        raise _explained(error, env, folder) from error


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
def _repository(env: Environment, log: Log) -> Iterator[Repository]:
    """The repository through ModelScope's client, with its warnings in our log and without its progress bars."""
    from modelscope_hub import HubApi, HubConfig, _download
    from tqdm.auto import tqdm  # noqa: PLC0415

    # There is no switch for the bars, and they would fill the log of a run that nobody watches.
    _download.tqdm = partial(tqdm, disable=True)  # pyright: ignore[reportPrivateImportUsage]
    logger = logging.getLogger("modelscope_hub")
    handlers = logger.handlers
    logger.handlers = [_LogHandler(log)]
    try:
        config = HubConfig(endpoint=env.model_endpoint)
        yield Repository(HubApi(config=config), str(config.endpoint), env.model_id, env.model_revision)
    finally:
        logger.handlers = handlers


class _LogHandler(logging.Handler):
    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno < logging.ERROR:  # what fails for good is raised, and explained
            self._log(record.getMessage().partition("\n")[0])


def _listing(repository: Repository) -> dict[str, Listed]:
    """Every file of the repository by its path. A path that leaves the snapshot's folder is refused."""
    from modelscope_hub.errors import InvalidParameter, NotExistError

    try:
        entries = repository.api.list_repo_files(repository.name, "model", revision=repository.revision)
    except (NotExistError, InvalidParameter):
        raise BadInput(_not_there(repository)) from None
    except (AttributeError, TypeError, ValueError) as error:
        raise DownloadError(
            f"{repository.endpoint} did not answer with a file listing{_instead(error)}; is it a ModelScope hub, and "
            "is no sign-in page or proxy of the network in between?"
        ) from error
    files = {}
    for entry in entries:
        try:
            inside(entry.path)
        except ValueError as error:
            raise BadInput(
                f"{repository.endpoint} lists a file of {repository} whose {error}; nothing was downloaded. "
                "Do not use this hub (WAN_MODEL_ENDPOINT) or repository (WAN_MODEL_ID)"
            ) from None
        if not entry.is_dir:
            files[entry.path] = Listed(entry.size, entry.sha256.lower() if entry.sha256 else None)
    return files


def _instead(error: Exception) -> str:
    """What was answered where JSON was expected, as far as the error holds it."""
    answer = str(getattr(error, "doc", "")).strip()
    return f", but with {answer[:80]!r}" if answer else f" ({error})"


def _not_there(repository: Repository) -> str:
    """Whether it is the repository that the hub does not have, or the revision."""
    from modelscope_hub.errors import HubError

    try:
        revisions = [entry["Revision"] for entry in repository.api.list_repo_revisions(repository.name, "model")]
    except (HubError, OSError, KeyError, TypeError):
        return (
            f"{repository.endpoint} has no model {repository.name!r}, or shows it only with a token "
            "(MODELSCOPE_API_TOKEN); check WAN_MODEL_ID (owner/name) and WAN_MODEL_ENDPOINT"
        )
    return (
        f"{repository.name} has no revision {repository.revision!r}, only {', '.join(revisions[:10]) or 'none'}; "
        "check WAN_MODEL_REVISION"
    )


def _select(repository: Repository, listing: Mapping[str, Listed], log: Log) -> dict[str, Listed]:
    """The files that the pipeline reads. A needed pattern that nothing matches is BadInput."""
    layout: Layout = "diffusers" if "model_index.json" in listing else "original"
    wanted = {}
    for pattern in (*NEEDED[layout], *OPTIONAL):
        matched = {name: listed for name, listed in listing.items() if fnmatchcase(name, pattern)}
        if not matched and pattern in OPTIONAL:
            log(f"{repository} has no {pattern}: {OPTIONAL[pattern]} will not be available")
        elif not matched:
            raise BadInput(
                f"{repository} has no file {pattern!r}, which a snapshot in the {layout} layout "
                "needs; check WAN_MODEL_ID and WAN_MODEL_REVISION"
            )
        wanted |= matched
    if unhashed := [name for name, listed in wanted.items() if listed.sha256 is None]:
        log(f"the hub lists no SHA-256 for {', '.join(unhashed)}: only the size can be checked")
    return wanted


@contextmanager
def _only_one(folder: Path, log: Log) -> Iterator[bool]:
    """Hold the lock on a download; true where another process had it first."""
    with folder.with_name(f".{folder.name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            waited = False
        except BlockingIOError:
            log(f"another process is downloading {folder}; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
            waited = True
        yield waited


def _check_space(folder: Path, wanted: Mapping[str, Listed]) -> None:
    missing = sum(listed.size - _received(folder / name, listed.size) for name, listed in wanted.items())
    free = shutil.disk_usage(folder).free
    if missing > free:
        raise BadInput(
            f"{folder}: the download needs {_gigabytes(missing)} more, but the disk has {_gigabytes(free)} free; "
            "free some space or set WAN_MODELS_ROOT to another disk"
        )


def _fetch(repository: Repository, folder: Path, wanted: Mapping[str, Listed], log: Log) -> None:
    """Download into `folder` until every file is there with the hash that the listing gives.

    The client hashes a file as it arrives (or reads it again when it was there before), gives up a file after an
    hour or five cuts, and keeps what it has. As long as bytes arrive, we ask for the rest again: there is no time
    limit for a 10 GB shard on a slow line.
    """
    from modelscope_hub.errors import FileDownloadError, NetworkError, RateLimitError, ServerError

    total = sum(listed.size for listed in wanted.values())
    log(f"{len(wanted)} files, {_gigabytes(total)}, of {repository} from {repository.endpoint} to {folder}")
    pending = dict(wanted)
    with _progress(folder, wanted, log):
        while pending:
            had = {name: _received(folder / name, listed.size) for name, listed in pending.items()}
            try:
                repository.api.download_repo(
                    repository.name,
                    "model",
                    revision=repository.revision,
                    cache_dir=folder.parent,  # for the client's locks
                    local_dir=folder,
                    file_list=[{"Path": name, "Size": size, "Sha256": sha} for name, (size, sha) in pending.items()],
                )
                return
            except FileDownloadError as error:
                pending = {name: pending[name] for name in error.failed_files}
                came = any(_received(folder / name, listed.size) > had[name] for name, listed in pending.items())
                line = (NetworkError, RateLimitError, ServerError)
                if not came or not all(isinstance(cause, line) for cause in error.failed_files.values()):
                    raise
                log(f"{len(pending)} files are not complete yet; going on with them")


def _manifest(repository: Repository, folder: Path, wanted: Mapping[str, Listed]) -> Manifest:
    """The manifest of a finished download. The client has compared each file with its listed hash already."""
    files = {
        name: FileEntry(size=listed.size, sha256=listed.sha256 or sha256(folder / name))
        for name, listed in wanted.items()
    }
    manifest = Manifest(repo=repository.name, endpoint=repository.endpoint, revision=repository.revision, files=files)
    if damage := manifest.damage(folder):
        raise DownloadError(f"{damage}, though it was just downloaded; run again")
    return manifest


def _received(file: Path, size: int) -> int:
    """Bytes of a file that are on disk, whole or in the client's partial files."""
    if file.exists():
        return min(file.stat().st_size, size)
    parts = [file.with_name(f"{file.name}.incomplete"), *file.parent.glob(f"{escape(file.name)}_[0-9]*_[0-9]*")]
    return min(sum(part.stat().st_size for part in parts if part.exists()), size)


@contextmanager
def _progress(folder: Path, wanted: Mapping[str, Listed], log: Log) -> Iterator[None]:
    """Tell the log every few seconds how much is there. The rate is that of the last minute."""
    total = sum(listed.size for listed in wanted.values())
    over = threading.Event()

    def report() -> None:
        samples = deque([(time.monotonic(), received())], maxlen=round(60 / REPORT_SECONDS) + 1)
        while not over.wait(REPORT_SECONDS):
            samples.append((time.monotonic(), received()))
            (then, before), (now, done) = samples[0], samples[-1]
            rate = max(done - before, 0) / (now - then)
            left = f", about {_duration((total - done) / rate)} left" if rate else ""
            log(f"{done / 1e9:.2f} of {_gigabytes(total)}, {rate / 1e6:.1f} MB/s{left}")

    def received() -> int:
        return sum(_received(folder / name, listed.size) for name, listed in wanted.items())

    thread = threading.Thread(target=report, name="download-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _explained(error: BaseException, env: Environment, subject: Path) -> BadInput | DownloadError:
    """What went wrong with `subject` and what to do, in place of the client's words."""
    from modelscope_hub import errors as hub

    if isinstance(error, hub.FileDownloadError):
        # Of several failures, one that the user must mend comes first.
        each = [_explained(cause, env, subject / name) for name, cause in error.failed_files.items()]
        return next((one for one in each if isinstance(one, BadInput)), each[0])
    reason = (getattr(error, "message", "") or str(error)).partition("\n")[0]
    if not reason or not reason.isascii():  # some of the client's messages are in Chinese
        reason = type(error).__name__
    if isinstance(error, hub.AuthenticationError | hub.PermissionDeniedError):
        return BadInput(
            f"{subject}: the hub refuses access to {env.model_id} ({reason}); check WAN_MODEL_ID, or set "
            "MODELSCOPE_API_TOKEN to a token that may read it"
        )
    if isinstance(error, OSError) and error.errno in LOCAL_ERRORS:
        return BadInput(
            f"{subject}: cannot be written ({os.strerror(error.errno or 0)}); free some space or mend the "
            "permissions, or set WAN_MODELS_ROOT to another disk. The download goes on where it stopped"
        )
    if isinstance(error, hub.FileIntegrityError):
        return DownloadError(
            f"{subject}: what the hub sends is not what it lists ({reason}). It was tried several times and nothing "
            "of it was kept; see that no sign-in page or proxy of the network answers in its place, and try again "
            "later, or another WAN_MODEL_ENDPOINT"
        )
    if isinstance(error, hub.NotExistError):
        return DownloadError(f"{subject}: the hub lists this file but does not have it; try again later")
    return DownloadError(
        f"{subject}: the download from {env.model_endpoint or 'ModelScope'} broke off ({reason}). Check the network "
        "(HTTPS_PROXY, NO_PROXY) and run again: it goes on where it stopped. Or set WAN_CHECKPOINT_DIR to a snapshot "
        "that you have"
    )


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.2f} GB"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min" if minutes else f"{seconds} s"
