"""The folder of a launch on the file system that Dagster and a cluster share.

WORK_FOLDER/wan-<job>-<hash>/        the Slurm job has the same name, so a later run finds it
    request.json     the request
    messages.jsonl   rank 0's messages, in Dagster Pipes' form
    job.sh           the batch script
    slurm.log        the output of the processes
WORK_FOLDER/<kind>-<job>.lock        locked by the step that watches the launch
"""

import fcntl
import hashlib
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import dagster as dg
from pydantic import ValidationError

from wan_orchestration.files import remove, replacing
from wan_orchestration.launch.pipes import job_ids
from wan_orchestration.protocol.messages import AnyRequest, PreprocessRequest, Request, Result

CUSTOM = "report_custom_message"
"""Dagster Pipes' method name of the messages that hold results."""


class SlurmFolder:
    """The folder of a Slurm job, which has the same name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name
        self.script = path / "job.sh"
        self.log = path / "slurm.log"


class LaunchFolder(SlurmFolder):
    """The files of one request's launch. Every run with the same request finds the same folder."""

    def __init__(self, root: Path, request: Request | PreprocessRequest) -> None:
        super().__init__(root / f"wan-{job_ids(request)[0]}-{request_hash(request)[:12]}")
        self.root = root
        self.request = request
        self.messages = self.path / "messages.jsonl"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other runs away from the request's jobs while this run watches them.

        Raises:
            dg.Failure: another run watches one of them.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            for job in sorted(job_ids(self.request)):
                file = stack.enter_context((self.root / f"{self.request.kind}-{job}.lock").open("w"))
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise dg.Failure(
                        f"Another run is making {job} on the cluster right now; wait for it, or cancel it first.",
                        allow_retries=False,
                    ) from None
            yield

    def conflicting_launches(self) -> Iterator[Path]:
        """Folders of launches with a different request that write to the same outputs."""
        for file in self.root.glob("wan-*/request.json"):
            with suppress(ValidationError):
                other = AnyRequest.validate_json(file.read_bytes())
                same = other.kind == self.request.kind and not set(job_ids(other)).isdisjoint(job_ids(self.request))
                if same and file.parent != self.path:
                    yield file.parent

    def write(self, script: str) -> None:
        """Create the folder for a new Slurm job, or with an empty script for a warm one. Replaces an older folder."""
        with replacing(self.path) as part:
            part.mkdir()
            (part / self.script.name).write_text(script)
            (part / self.messages.name).touch()
            (part / self.log.name).touch()
            (part / "request.json").write_text(self.request.model_dump_json())

    def has_all_videos(self) -> bool:
        """Whether the messages report the `result.json` of each video: the Slurm job ended while no step watched it."""
        if isinstance(self.request, PreprocessRequest):
            return False
        with suppress(OSError, ValueError):
            messages = [json.loads(line) for line in self.messages.read_bytes().splitlines()]
            reported = [message["params"]["payload"] for message in messages if message["method"] == CUSTOM]
            results = [Result.read(task.output / "result.json") for task in self.request.tasks]
            return all(result and result.model_dump(mode="json") in reported for result in results)
        return False


def request_hash(request: Request | PreprocessRequest) -> str:
    """A hash of the request without its time. Input files count by size and modification time."""
    if isinstance(request, PreprocessRequest):
        inputs = [request.driving, request.reference]
        content = request.model_dump(mode="json")
    else:
        inputs = [file for task in request.tasks for file in sorted(task.clips.folder.iterdir())]
        content = request.model_dump(mode="json", exclude={"tasks": {"__all__": {"created_at"}}})
    stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in inputs]
    return hashlib.sha256(json.dumps([content, stats], sort_keys=True).encode()).hexdigest()


def discard(path: Path) -> None:
    """Remove a launch's folder, or as much of it as possible: a dying process may still be writing to it."""
    with suppress(OSError):
        remove(path)
