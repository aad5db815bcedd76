"""Runs the worker on this machine from a Dagster step, under torchrun and through Dagster Pipes.

Dagster's own Pipes client signals only its direct child, and never kills it. Here the whole process tree ends with the
step:

- The step is cancelled or fails: torchrun gets SIGTERM and passes it on; after a grace period, the rest is killed.
- The step is killed: torchrun dies with it (`setpriv --pdeathsig`), and the ranks die with torchrun (`worker.py`).
- The worker hangs: its processes write their stacks to the log, then they are killed.

The processes write to the step's own stdout and stderr, so no pipe can fill up and block them.
"""

import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Literal, cast

import dagster as dg
from pydantic import Field

from wan_orchestration.launch.gpus import Allocation, Gpus
from wan_orchestration.launch.launcher import WORKER, Launcher, WorkerDied
from wan_orchestration.launch.pipes import LaunchMonitor, Outcome, pipes_session
from wan_orchestration.launch.processes import managed_process
from wan_orchestration.protocol.messages import PreprocessOutcome, PreprocessRequest, Request, Result

POLL_SECONDS = 0.5
STACK_SECONDS = 2.0
"""How long hung processes get to write their stacks."""


class TorchrunClient(Launcher):
    """Launches `torchrun` on leased GPUs of this machine, one launch for all jobs of a run."""

    gpus: dg.ResourceDependency[Gpus]
    processes: int = Field(default=1, ge=1, description="Processes (ranks) of a launch, each on a GPU of its own.")
    parallelism: Literal["auto", "sequence", "jobs"] = Field(
        default="auto",
        description="What several processes do. sequence: they work on one video together; jobs: each works on a video "
        "of its own, which needs the whole model on each GPU but no communication; auto: jobs if there are at least as "
        "many videos as processes, else sequence.",
    )
    grace_seconds: float = Field(
        default=10.0, ge=0, description="How long a cancelled launch may take to stop by itself before it is killed."
    )
    stall_timeout_seconds: float = Field(
        default=1800.0,
        gt=0,
        description="If a launch begins no denoising step and no phase for so long, the step logs its stacks and kills "
        "it. Loading the weights and decoding a segment are a phase each.",
    )
    environment: dict[str, str] = Field(
        default={},
        description="More environment variables for the processes, such as NCCL_DEBUG or PYTORCH_CUDA_ALLOC_CONF.",
    )

    def generate(self, context: dg.AssetExecutionContext, request: Request) -> Generator[Result]:
        with self.gpus.leased(context, self.processes, _job_names(request)) as allocation, ExitStack() as stack:
            requests = self._split(context, request)
            launches = [
                stack.enter_context(_Launch(self, context, part, allocation.part(index, len(requests))))
                for index, part in enumerate(requests)
            ]
            yield from cast(Iterator[Result], _outcomes(launches))

    def preprocess(self, context: dg.AssetExecutionContext, request: PreprocessRequest) -> PreprocessOutcome:
        with (
            self.gpus.leased(context, 1, request.job_id) as allocation,
            _Launch(self, context, request, allocation) as launch,
        ):
            (outcome,) = _outcomes([launch])
            return cast(PreprocessOutcome, outcome)

    def _split(self, context: dg.AssetExecutionContext, request: Request) -> list[Request]:
        """One request for each launch."""
        count, tasks = self.processes, request.tasks
        separate = self.parallelism == "jobs" or (self.parallelism == "auto" and len(tasks) >= count)
        if count > 1:
            how = f"one video on each of {count} devices" if separate else f"each video on {count} devices together"
            why = f"{len(tasks)} videos, {count} devices" if self.parallelism == "auto" else "as configured"
            context.log.info(f"Generates {how} ({why}).")
        if not separate:
            return [request]
        return [request.model_copy(update={"tasks": tasks[n::count]}) for n in range(min(count, len(tasks)))]


class _Launch:
    """One torchrun (for preprocessing: one process), its request, and its messages so far."""

    def __init__(
        self,
        client: TorchrunClient,
        context: dg.AssetExecutionContext,
        request: Request | PreprocessRequest,
        allocation: Allocation,
    ) -> None:
        self.client, self.context, self.request = client, context, request
        self.monitor = LaunchMonitor(context, request)
        self.ended = False
        self._stack = ExitStack()
        with ExitStack() as stack:
            self._folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="wan-launch-")))
            self._session = stack.enter_context(pipes_session(context, request))
            (self._folder / "request.json").write_text(request.model_dump_json())
            self._process = stack.enter_context(
                managed_process(
                    self._command(len(allocation.lease.devices)),
                    self._variables(allocation),
                    client.grace_seconds,
                    allocation.lease.descriptors,
                )
            )
            self._stack = stack.pop_all()

    def __enter__(self) -> "_Launch":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def poll(self) -> Iterator[Outcome]:
        """Outcomes since the last call. Sets `ended` after the last.

        Raises:
            WorkerDied: the worker hung and was killed, or it ended without an outcome for every job.
        """
        if self._process.poll() is None:
            yield from self.monitor.process(self._session.get_custom_messages())
            silence = time.monotonic() - self.monitor.active_at
            if silence > self.client.stall_timeout_seconds:
                self.ended = True
                raise self._kill_hung(silence)
            return
        self.ended = True
        # Closing the session reads the remaining messages.
        self._stack.close()
        yield from self.monitor.process(self._session.get_custom_messages())
        ending = _exit_words(self._process.returncode)
        if self.monitor.pending:
            raise WorkerDied(
                f"The worker ended with {ending} before it had a result for {', '.join(self.monitor.pending)}; "
                "its last lines are in this step's stderr.",
                self.monitor.current_job,
            )
        if self._process.returncode:
            self.context.log.warning(f"The worker had all results, but ended with {ending}.")

    def _kill_hung(self, silence: float) -> WorkerDied:
        """Log the stacks of all processes, end them, and return the error to raise."""
        self.context.log.error("\n".join(["The worker hangs here:", *self._stacks()]))
        self._stack.close()
        return WorkerDied(
            f"The worker hung: {self.monitor.current_job} made no progress for {silence:.0f} s "
            "(stall_timeout_seconds); the stacks of its processes are in this run's log.",
            self.monitor.current_job,
            retryable=False,
        )

    def _stacks(self) -> Iterator[str]:
        # Each process has a file for its stacks, named after its rank and process id. SIGUSR1 makes it write them.
        files = sorted(self._folder.glob("stacks-*-*.txt"))
        for file in files:
            with suppress(ProcessLookupError):
                os.kill(int(file.stem.split("-")[-1]), signal.SIGUSR1)
        time.sleep(STACK_SECONDS)
        for file in files:
            yield f"rank {file.stem.split('-')[1]}:\n{file.read_text() or '(no answer: it may be stopped)'}"

    def _command(self, processes: int) -> list[str]:
        request = str(self._folder / "request.json")
        if isinstance(self.request, PreprocessRequest):
            command = [sys.executable, "-m", WORKER, request]
        else:
            command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nnodes=1"]
            command += [f"--nproc-per-node={processes}", "--local-addr=127.0.0.1", f"--log-dir={self._folder}"]
            command += [f"--shutdown-timeout={max(1, int(self.client.grace_seconds))}", "-m", WORKER, request]
        if setpriv := shutil.which("setpriv"):
            return [setpriv, "--pdeathsig", "KILL", "--", *command]
        return command

    def _variables(self, allocation: Allocation) -> dict[str, str]:
        # If this is not set, torchrun gives each of several processes one thread; on a CPU, cores would stay idle.
        threads = max(1, allocation.threads // len(allocation.lease.devices))
        return {
            "OMP_NUM_THREADS": str(threads),
            **os.environ,
            "PYTHONUNBUFFERED": "1",
            "PYTHONFAULTHANDLER": "1",
            **self.client.environment,
            **allocation.variables,
            **self._session.get_bootstrap_env_vars(),
        }


def _outcomes(launches: Sequence[_Launch]) -> Iterator[Outcome]:
    """Outcomes of several launches, until all have ended. Then raises the first WorkerDied among them."""
    first_error: WorkerDied | None = None
    while running := [launch for launch in launches if not launch.ended]:
        for launch in running:
            try:
                yield from launch.poll()
            except WorkerDied as error:
                first_error = first_error or error
        time.sleep(POLL_SECONDS)
    if first_error:
        raise first_error


def _exit_words(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    return f"signal {signal.Signals(-code).name}"


def _job_names(request: Request) -> str:
    first, *others = [task.job_id for task in request.tasks]
    return f"{first} and {len(others)} more" if others else first
