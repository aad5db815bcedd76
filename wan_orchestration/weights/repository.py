"""A repository on a ModelScope hub: the client that reaches it, its listing, and the files that the pipeline reads."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, NamedTuple

from wan_orchestration.errors import BadInput
from wan_orchestration.families.choose import FIRST, recognise
from wan_orchestration.families.family import Family, Layout
from wan_orchestration.settings.environment import Environment
from wan_orchestration.weights.download_errors import DownloadError
from wan_orchestration.weights.manifest import check_path
from wan_orchestration.weights.modelscope_internals import turn_off_progress_bars

if TYPE_CHECKING:
    from modelscope_hub import HubApi

Log = Callable[[str], None]


class ListedFile(NamedTuple):
    """A file as the hub lists it."""

    size: int
    sha256: str | None


class Repository(NamedTuple):
    """One revision of a repository, with the client."""

    api: "HubApi"
    endpoint: str
    name: str
    revision: str

    def __str__(self) -> str:
        return f"{self.name}@{self.revision}"


@contextmanager
def open_repository(env: Environment, log: Log) -> Iterator[Repository]:
    """Opens the repository with ModelScope's client. The client's warnings go to `log`; its progress bars are off."""
    from modelscope_hub import HubApi, HubConfig

    turn_off_progress_bars()
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
        if record.levelno < logging.ERROR:  # errors are raised as well, and explained there
            self._log(record.getMessage().partition("\n")[0])


def list_files(repository: Repository) -> dict[str, ListedFile]:
    """Every file of the repository, by its path.

    BadInput: no such repository or revision, or a path that leaves the snapshot's folder. DownloadError: the hub's
    answer is not a listing.
    """
    from modelscope_hub.errors import InvalidParameter, NotExistError

    try:
        entries = repository.api.list_repo_files(repository.name, "model", revision=repository.revision)
    except (NotExistError, InvalidParameter):
        raise BadInput(_what_is_missing(repository)) from None
    except (AttributeError, TypeError, ValueError) as error:
        raise DownloadError(
            f"{repository.endpoint} did not answer with a file listing{_found_instead(error)}; is it a ModelScope hub, "
            "or does a sign-in page or proxy of the network answer in its place?"
        ) from error
    files = {}
    for entry in entries:
        try:
            check_path(entry.path)
        except ValueError as error:
            raise BadInput(
                f"{repository.endpoint} lists a file of {repository} whose {error}; nothing was downloaded. "
                "Do not use this hub (WAN_MODEL_ENDPOINT) or repository (WAN_MODEL_ID)"
            ) from None
        if not entry.is_dir:
            files[entry.path] = ListedFile(entry.size, entry.sha256.lower() if entry.sha256 else None)
    return files


def _found_instead(error: Exception) -> str:
    """What the hub answered in place of a listing: the beginning of its answer, or else the error."""
    answer = str(getattr(error, "doc", "")).strip()
    return f", but with {answer[:80]!r}" if answer else f" ({error})"


def _what_is_missing(repository: Repository) -> str:
    """Says whether the hub lacks the repository or the revision."""
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


def layout_of(
    repository: Repository, listing: Mapping[str, ListedFile], family: Family | None
) -> tuple[Family, Layout]:
    """The family and layout of a listing. BadInput: it is not of the `family` that is wanted."""
    found, name = recognise(listing) or (family or FIRST, "original")
    if family not in (None, found):
        raise BadInput(
            f"{repository} holds {found.title}, but {family.title} is wanted; set model: {found.name}, or WAN_MODEL_ID "
            f"to a repository of {family.title}"
        )
    return found, found.layouts[name]


def select_files(
    repository: Repository, listing: Mapping[str, ListedFile], layout: Layout, variant: str, log: Log
) -> dict[str, ListedFile]:
    """The files that the pipeline reads for a variant. BadInput: no file matches a needed pattern."""
    wanted = {}
    for pattern in (*layout.needed[variant], *layout.optional):
        matched = {name: listed for name, listed in listing.items() if fnmatchcase(name, pattern)}
        if not matched and pattern not in layout.optional:
            raise BadInput(
                f"{repository} has no file {pattern!r}, which a snapshot with {layout.examples} needs; check "
                "WAN_MODEL_ID and WAN_MODEL_REVISION"
            )
        if not matched and layout.optional[pattern]:
            log(f"{repository} has no {pattern}: {layout.optional[pattern]} will not be available")
        wanted |= matched
    if unhashed := [name for name, listed in wanted.items() if listed.sha256 is None]:
        log(f"the hub lists no SHA-256 for {', '.join(unhashed)}: only the size can be checked")
    return wanted
