"""Runs the engine's worker under torchrun from a Dagster step, through Dagster Pipes.

Dagster's own Pipes client signals its direct child only and never kills it. Here the whole tree ends with the step:

- cancelled or failed: SIGTERM to torchrun, which passes it on; after a grace period whatever is left is killed;
- the step itself killed: torchrun dies with its parent (`setpriv --pdeathsig`), the ranks with torchrun (see `worker`).

The processes write to the step's own stdout and stderr, so that no pipe can fill up and block them.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import dagster as dg
import psutil
from pydantic import Field, TypeAdapter

from wan_orchestration.messages import Progress, Request, Result

WORKER = "wan_orchestration.worker"
POLL_SECONDS = 0.5
PROGRESS_SECONDS = 4.0

Message = TypeAdapter(Annotated[Progress | Result, Field(discriminator="kind")])


class WorkerDied(RuntimeError):
    """The worker ended without a result for every task; another try goes on after the last finished clip."""


class TorchrunClient(dg.ConfigurableResource):
    """Launches `torchrun` on this machine, one launch for all tasks of a request."""

    processes: int = Field(
        default=1, ge=1, description="Processes (ranks) that work on one video together, one for each GPU."
    )
    grace_seconds: float = Field(
        default=10.0, ge=0, description="How long a cancelled launch may take to stop by itself before it is killed."
    )

    def run(self, context: dg.AssetExecutionContext, request: Request) -> list[Result]:
        """Run a request to its end. Progress goes to the Dagster log as it comes.

        Raises:
            WorkerDied: the worker ended without a result for every task. A task that failed has a result that says so.
        """
        with (
            tempfile.TemporaryDirectory(prefix="wan-launch-") as folder,
            dg.open_pipes_session(
                context=context,
                context_injector=dg.PipesTempFileContextInjector(),
                message_reader=dg.PipesTempFileMessageReader(),
                extras={"jobs": [task.job_id for task in request.tasks]},
            ) as session,
        ):
            file = Path(folder) / "request.json"
            file.write_text(request.model_dump_json())
            listener = Listener(context)
            environment = {**self._environment(), **session.get_bootstrap_env_vars()}
            with started(self._command(file), environment, self.grace_seconds) as process:
                while process.poll() is None:
                    listener.hear(session.get_custom_messages())
                    with _timeout_is_fine():
                        process.wait(POLL_SECONDS)
        # The session reads what is left of the messages as it closes.
        listener.hear(session.get_custom_messages())
        missing = {task.job_id for task in request.tasks} - {result.job_id for result in listener.results}
        if missing:
            raise WorkerDied(
                f"The worker ended with exit code {process.returncode} before it had a result for "
                f"{', '.join(sorted(missing))}; its last lines are in this step's stderr."
            )
        if process.returncode:
            context.log.warning(f"The worker had all results, but ended with exit code {process.returncode}.")
        return listener.results

    def _command(self, request: Path) -> list[str]:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nnodes=1"]
        command += [f"--nproc-per-node={self.processes}", "--local-addr=127.0.0.1", f"--log-dir={request.parent}"]
        command += [f"--shutdown-timeout={max(1, int(self.grace_seconds))}", "-m", WORKER, str(request)]
        if setpriv := shutil.which("setpriv"):
            return [setpriv, "--pdeathsig", "KILL", "--", *command]
        return command

    def _environment(self) -> dict[str, str]:
        # torchrun would give each of several processes one thread; on a CPU that leaves the other cores idle.
        threads = max(1, len(os.sched_getaffinity(0)) // self.processes)
        return {"OMP_NUM_THREADS": str(threads), **os.environ, "PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1"}


class Listener:
    """Takes in what rank 0 reports, and logs progress, at most a line every few seconds."""

    def __init__(self, context: dg.AssetExecutionContext) -> None:
        self.context = context
        self.results: list[Result] = []
        self._heard = 0
        self._logged = float("-inf")

    def hear(self, messages: Sequence[Any]) -> None:
        """Take in all messages so far; those of earlier calls are known."""
        latest: Progress | None = None
        for message in map(Message.validate_python, messages[self._heard :]):
            if isinstance(message, Result):
                self.results.append(message)
            else:
                latest = message
        self._heard = len(messages)
        if latest and time.monotonic() - self._logged >= PROGRESS_SECONDS:
            self.context.log.info(str(latest))
            self._logged = time.monotonic()


@contextmanager
def started(command: Sequence[str], environment: dict[str, str], grace: float) -> Iterator[subprocess.Popen]:
    """A process in a session of its own. On leaving nothing is left of it, nor of its descendants."""
    process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        yield process
    finally:
        stop(process, grace)


def stop(process: subprocess.Popen, grace: float) -> None:
    """End a session leader and all its descendants: SIGTERM to its group, after `grace` seconds SIGKILL to each."""
    tree = _tree(process.pid)
    try:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            with _timeout_is_fine():
                process.wait(grace)
    finally:
        # Also where a second interrupt cuts the grace period short. Some may have been started since.
        for member in tree.union(*(_tree(member.pid) for member in tree)):
            with _gone_is_fine():
                member.kill()
        process.wait()


def _tree(pid: int) -> set[psutil.Process]:
    with _gone_is_fine():
        process = psutil.Process(pid)
        return {process, *process.children(recursive=True)}
    return set()


@contextmanager
def _timeout_is_fine() -> Iterator[None]:
    try:
        yield
    except subprocess.TimeoutExpired:
        return


@contextmanager
def _gone_is_fine() -> Iterator[None]:
    try:
        yield
    except psutil.NoSuchProcess:
        return
