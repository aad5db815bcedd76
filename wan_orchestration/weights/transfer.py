"""Transfers a snapshot's files: checks the free space, downloads until the files are complete, logs progress."""

import shutil
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from wan_orchestration.errors import BadInput
from wan_orchestration.weights.modelscope_internals import bytes_on_disk
from wan_orchestration.weights.repository import ListedFile, Log, Repository

REPORT_SECONDS = 5.0


def check_space(folder: Path, wanted: Mapping[str, ListedFile]) -> None:
    """BadInput: the disk has too little space for the files that are not there yet."""
    missing = sum(listed.size - bytes_on_disk(folder / name, listed.size) for name, listed in wanted.items())
    free = shutil.disk_usage(folder).free
    if missing > free:
        raise BadInput(
            f"{folder}: the download needs {_gigabytes(missing)} more, but the disk has {_gigabytes(free)} free; "
            "free some space or set WAN_MODELS_ROOT to another disk"
        )


def fetch(repository: Repository, folder: Path, wanted: Mapping[str, ListedFile], log: Log) -> None:
    """Downloads into `folder` until every file is there with its listed hash.

    The client hashes each file while it arrives, or rereads a file that is there already. It abandons a file after
    an hour or five broken connections, and keeps the bytes that it has. This function resumes such files as long as
    bytes arrive, so that a 10 GB shard on a slow line has no time limit. If none arrive, or another error occurs, it
    raises the client's FileDownloadError.
    """
    from modelscope_hub.errors import FileDownloadError, NetworkError, RateLimitError, ServerError

    total = sum(listed.size for listed in wanted.values())
    log(f"{len(wanted)} files, {_gigabytes(total)}, of {repository} from {repository.endpoint} to {folder}")
    pending = dict(wanted)
    with _progress(folder, wanted, log):
        while pending:
            before = {name: bytes_on_disk(folder / name, listed.size) for name, listed in pending.items()}
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
                arrived = any(
                    bytes_on_disk(folder / name, listed.size) > before[name] for name, listed in pending.items()
                )
                temporary = (NetworkError, RateLimitError, ServerError)
                if not arrived or not all(isinstance(cause, temporary) for cause in error.failed_files.values()):
                    raise
                log(f"{len(pending)} files are incomplete; resuming them")


@contextmanager
def _progress(folder: Path, wanted: Mapping[str, ListedFile], log: Log) -> Iterator[None]:
    """Logs every few seconds how much has arrived, and the rate over the last minute."""
    total = sum(listed.size for listed in wanted.values())
    finished = threading.Event()

    def report() -> None:
        samples = deque([(time.monotonic(), received())], maxlen=round(60 / REPORT_SECONDS) + 1)
        while not finished.wait(REPORT_SECONDS):
            samples.append((time.monotonic(), received()))
            (then, before), (now, done) = samples[0], samples[-1]
            rate = max(done - before, 0) / (now - then)
            left = f", about {_duration((total - done) / rate)} left" if rate else ""
            log(f"{done / 1e9:.2f} of {_gigabytes(total)}, {rate / 1e6:.1f} MB/s{left}")

    def received() -> int:
        return sum(bytes_on_disk(folder / name, listed.size) for name, listed in wanted.items())

    thread = threading.Thread(target=report, name="download-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.2f} GB"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min" if minutes else f"{seconds} s"
