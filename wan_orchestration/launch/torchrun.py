"""Runs the engine's worker on this machine from a Dagster step, through Dagster Pipes.

Dagster's own Pipes client signals its direct child only and never kills it. Here the whole tree ends with the step:

- cancelled or failed: SIGTERM to torchrun, which passes it on; after a grace period whatever is left is killed;
- the step itself killed: torchrun dies with its parent (`setpriv --pdeathsig`), the ranks with torchrun (see `worker`);
- hung: it prints its stacks, then it is killed.

The processes write to the step's own stdout and stderr, so that no pipe can fill up and block them.
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

from wan_orchestration.launch.gpus import Gpus, Share
from wan_orchestration.launch.launcher import WORKER, Launcher, WorkerDied
from wan_orchestration.launch.pipes import Listener, Outcome, session
from wan_orchestration.launch.processes import started
from wan_orchestration.protocol.messages import PreprocessOutcome, PreprocessRequest, Request, Result

POLL_SECONDS = 0.5
STACK_SECONDS = 2.0
"""How long hung processes get to write down where they hang."""


class TorchrunClient(Launcher):
    """Launches `torchrun` on leased GPUs of this machine, one launch for all jobs of a run."""

    gpus: dg.ResourceDependency[Gpus]
    processes: int = Field(default=1, ge=1, description="Processes (ranks) of a launch, each on a GPU of its own.")
    parallelism: Literal["auto", "sequence", "jobs"] = Field(
        default="auto",
        description="What several processes do. sequence: work on one video together; jobs: each on a video of its "
        "own, which needs the whole model on each GPU and wastes nothing on communication; auto: jobs where there are "
        "at least as many videos as processes.",
    )
    grace_seconds: float = Field(
        default=10.0, ge=0, description="How long a cancelled launch may take to stop by itself before it is killed."
    )
    stall_timeout_seconds: float = Field(
        default=1800.0,
        gt=0,
        description="A launch that begins no step and no phase for so long hangs: its stacks are logged, then it is "
        "killed. Loading the weights and decoding a clip are a phase each.",
    )
    environment: dict[str, str] = Field(
        default={}, description="More variables for the processes, such as NCCL_DEBUG or PYTORCH_CUDA_ALLOC_CONF."
    )

    def generate(self, context: dg.AssetExecutionContext, request: Request) -> Generator[Result]:
        with self.gpus.leased(context, self.processes, _jobs(request)) as share, ExitStack() as stack:
            requests = self._share_out(context, request)
            launches = [
                stack.enter_context(_Launch(self, context, part, share.part(index, len(requests))))
                for index, part in enumerate(requests)
            ]
            yield from cast(Iterator[Result], _outcomes(launches))

    def preprocess(self, context: dg.AssetExecutionContext, request: PreprocessRequest) -> PreprocessOutcome:
        with (
            self.gpus.leased(context, 1, request.job_id) as share,
            _Launch(self, context, request, share) as launch,
        ):
            (outcome,) = _outcomes([launch])
            return cast(PreprocessOutcome, outcome)

    def _share_out(self, context: dg.AssetExecutionContext, request: Request) -> list[Request]:
        """A request for each launch."""
        count, tasks = self.processes, request.tasks
        apart = self.parallelism == "jobs" or (self.parallelism == "auto" and len(tasks) >= count)
        if count > 1:
            how = f"one video on each of {count} devices" if apart else f"each video on {count} devices together"
            why = f"{len(tasks)} videos, {count} devices" if self.parallelism == "auto" else "as configured"
            context.log.info(f"Generates {how} ({why}).")
        if not apart:
            return [request]
        return [request.model_copy(update={"tasks": tasks[n::count]}) for n in range(min(count, len(tasks)))]


class _Launch:
    """One torchrun (for clips: one process), what it was asked for, and what it has said so far."""

    def __init__(
        self,
        client: TorchrunClient,
        context: dg.AssetExecutionContext,
        request: Request | PreprocessRequest,
        share: Share,
    ) -> None:
        self.client, self.context, self.request = client, context, request
        self.listener = Listener(context, request)
        self.over = False
        self._stack = ExitStack()
        with ExitStack() as stack:
            self._folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="wan-launch-")))
            self._session = stack.enter_context(session(context, request))
            (self._folder / "request.json").write_text(request.model_dump_json())
            self._process = stack.enter_context(
                started(
                    self._command(len(share.lease.devices)),
                    self._variables(share),
                    client.grace_seconds,
                    share.lease.descriptors,
                )
            )
            self._stack = stack.pop_all()

    def __enter__(self) -> "_Launch":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def hear(self) -> Iterator[Outcome]:
        """Outcomes since the last call; `over` tells whether more can come.

        Raises:
            WorkerDied: it hung and was ended, or it ended without an outcome for every job.
        """
        if self._process.poll() is None:
            yield from self.listener.hear(self._session.get_custom_messages())
            silent = time.monotonic() - self.listener.heard_at
            if silent > self.client.stall_timeout_seconds:
                self.over = True
                raise self._hung(silent)
            return
        self.over = True
        # The session reads what is left of the messages as it closes.
        self._stack.close()
        yield from self.listener.hear(self._session.get_custom_messages())
        ending = _ending(self._process.returncode)
        if self.listener.pending:
            raise WorkerDied(
                f"The worker ended with {ending} before it had a result for {', '.join(self.listener.pending)}; "
                "its last lines are in this step's stderr.",
                self.listener.culprit,
            )
        if self._process.returncode:
            self.context.log.warning(f"The worker had all results, but ended with {ending}.")

    def _hung(self, seconds: float) -> WorkerDied:
        """Have every process write down where it hangs, then end them all."""
        self.context.log.error("\n".join(["The worker hangs here:", *self._stacks()]))
        self._stack.close()
        return WorkerDied(
            f"The worker hung: {self.listener.culprit} made no progress for {seconds:.0f} s (stall_timeout_seconds); "
            "where it hung is in this run's log.",
            self.listener.culprit,
            again=False,
        )

    def _stacks(self) -> Iterator[str]:
        # Each process that can be asked has a file for the answer, named after its rank and process id.
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

    def _variables(self, share: Share) -> dict[str, str]:
        # torchrun would give each of several processes one thread; on a CPU that leaves the other cores idle.
        threads = max(1, share.threads // len(share.lease.devices))
        return {
            "OMP_NUM_THREADS": str(threads),
            **os.environ,
            "PYTHONUNBUFFERED": "1",
            "PYTHONFAULTHANDLER": "1",
            **self.client.environment,
            **share.variables,
            **self._session.get_bootstrap_env_vars(),
        }


def _outcomes(launches: Sequence[_Launch]) -> Iterator[Outcome]:
    """What several launches have to say, until the last has ended. The first that died is raised in the end."""
    died: WorkerDied | None = None
    while working := [launch for launch in launches if not launch.over]:
        for launch in working:
            try:
                yield from launch.hear()
            except WorkerDied as error:
                died = died or error
        time.sleep(POLL_SECONDS)
    if died:
        raise died


def _ending(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    return f"signal {signal.Signals(-code).name}"


def _jobs(request: Request) -> str:
    first, *others = [task.job_id for task in request.tasks]
    return f"{first} and {len(others)} more" if others else first
