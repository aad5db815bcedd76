"""Runs the engine's worker on a Slurm cluster: one `sbatch`, and in it one torchrun on each node.

A step that is cancelled or fails cancels its Slurm job and waits until that is gone. A step that is killed leaves the
job running: the next step that asks for the same takes over from it, with all that it has reported so far, and one
that asks for something else in the same place ends it first.
"""

import os
import shlex
import sys
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import cast

import dagster as dg
from pydantic import Field, field_validator

from wan_orchestration.launch import slurm_queue
from wan_orchestration.launch.launcher import WORKER, Launcher, WorkerDied
from wan_orchestration.launch.pipes import Listener, Outcome, jobs_of, session
from wan_orchestration.launch.slurm_folder import LaunchFolder, discard
from wan_orchestration.launch.slurm_queue import Job, Refused, Unreachable
from wan_orchestration.launch.tail import Tail, TailMessageReader
from wan_orchestration.protocol.messages import PreprocessOutcome, PreprocessRequest, Request, Result
from wan_orchestration.settings.environment import environment

GONE_POLL_SECONDS = 0.5

ENDINGS = {
    "TIMEOUT": "was stopped at its time limit ({limit})",
    "NODE_FAIL": "lost a node ({lost})",
    "BOOT_FAIL": "got a node that did not boot ({nodes})",
    "PREEMPTED": "had to make room for another job",
    "DEADLINE": "had not ended at its deadline",
    "COMPLETED": "ended",
    "CANCELLED": "was cancelled by somebody else (scancel)",
    "OUT_OF_MEMORY": "used more main memory than Slurm had given it",
}
"""How a job ended, in words."""
ADVICE = {
    "TIMEOUT": "Another try goes on after the last finished clip; a longer time_limit needs none.",
    "OUT_OF_MEMORY": 'Ask for more in the directives, for instance "--mem=200G".',
}
WAITING = {"PENDING", "CONFIGURING"}
"""States in which nothing can be heard yet."""
FINAL = {"CANCELLED", "DEADLINE"}
"""Endings after which another Slurm job is not wanted."""


class SlurmClient(Launcher):
    """Launches `torchrun` on nodes of a Slurm cluster, one Slurm job for all tasks of a request."""

    nodes: int = Field(default=1, ge=1, description="Machines that work on one video together.")
    gpus_per_node: int = Field(
        default=1, ge=0, description="GPUs on each node, one process for each; 0: one process a node, on its CPUs."
    )
    cpus_per_node: int | None = Field(
        default=None, ge=1, description="CPU cores on each node; default: what the cluster gives, often a single one."
    )
    partition: str | None = Field(default=None, description="Partition to submit to; default: the cluster's.")
    account: str | None = Field(default=None, description="Account that is charged; default: the user's.")
    time_limit: str | None = Field(
        default=None, description="Limit as sbatch takes it: MINUTES, HH:MM:SS or DAYS-HH; default: the partition's."
    )
    directives: list[str] = Field(
        default=[],
        description='More options of sbatch, for instance "--qos=high" or "--gpus-per-node=h100:4"; they win over '
        "the fields above.",
    )
    work_folder: str | None = Field(
        default=None,
        description="Folder for scripts, messages and logs on a file system that this machine and the nodes share; "
        "default: DATA_ROOT/slurm.",
    )
    poll_seconds: float = Field(default=5.0, gt=0, description="How often to look at the Slurm job and its messages.")
    stall_timeout_seconds: float = Field(
        default=1800.0,
        gt=0,
        description="A running Slurm job that begins no step and no phase for so long hangs, and is cancelled. "
        "Loading the weights and decoding a clip are a phase each.",
    )
    grace_seconds: float = Field(
        default=90.0, ge=0, description="How long to wait until a cancelled Slurm job is gone from its nodes."
    )

    @field_validator("directives")
    @classmethod
    def _options(cls, directives: list[str]) -> list[str]:
        for directive in directives:
            if not directive.startswith("--"):
                raise ValueError(f"{directive!r} is no long option of sbatch; expected the form --name=value")
        return directives

    def generate(self, context: dg.AssetExecutionContext, request: Request) -> Generator[Result]:
        yield from cast(Iterator[Result], self._launch(context, request, self.nodes, self.gpus_per_node))

    def preprocess(self, context: dg.AssetExecutionContext, request: PreprocessRequest) -> PreprocessOutcome:
        (outcome,) = self._launch(context, request, 1, min(1, self.gpus_per_node))
        assert isinstance(outcome, PreprocessOutcome)
        return outcome

    def _launch(
        self, context: dg.AssetExecutionContext, request: Request | PreprocessRequest, nodes: int, gpus: int
    ) -> Iterator[Outcome]:
        root = Path(self.work_folder).expanduser() if self.work_folder else environment().data_root / "slurm"
        folder = LaunchFolder(root.absolute(), request)
        try:
            with folder.claimed(), self._ended(context, folder.name):
                for other in folder.others():
                    context.log.info(f"Ends the launch {other}, which was to make another video in the same place.")
                    self._end(context, other)
                    discard(folder.root / other)
                yield from self._follow(context, folder, nodes, gpus)
                discard(folder.path)
        except Unreachable as error:
            raise WorkerDied(f"Slurm's controller does not answer: {error}", jobs_of(request)[0]) from error
        except Refused as error:
            raise dg.Failure(f"Slurm does not take the job: {error}", allow_retries=False) from error

    def _follow(
        self, context: dg.AssetExecutionContext, folder: LaunchFolder, nodes: int, gpus: int
    ) -> Iterator[Outcome]:
        """Submit the launch's Slurm job or find it again, and give its outcomes until it ends."""
        job = slurm_queue.find(folder.name)
        if job and job.state == "COMPLETING":
            # Over, but for a node that is slow to say so.
            self._end(context, folder.name)
            job = None
        unseen = job is None and folder.has_all_videos()
        if job is None and not unseen:
            folder.write(batch_script(folder, nodes, max(1, gpus), self.cpus_per_node))
        reader, log = TailMessageReader(folder.messages), Tail(folder.log)
        with session(context, folder.request, dg.PipesEnvContextInjector(), reader) as pipes:
            if unseen:
                context.log.info("The Slurm job of an earlier run has ended, and all its videos are in their places.")
                states = iter([None])
            elif job:
                context.log.info(f"Takes over the Slurm job {job.id} of an earlier run, {folder.name}.")
                states = self._states(context, job.id)
            else:
                variables = {**_environment(), **pipes.get_bootstrap_env_vars()}
                job_id = slurm_queue.submit(folder.script, self._arguments(folder, nodes, gpus), variables)
                context.log.info(f"Submitted Slurm job {job_id}, {folder.name}; its log is {folder.log}")
                states = self._states(context, job_id)
            listener = Listener(context, folder.request)
            for job in states:
                reader.read()
                _print(log)
                yield from listener.hear(pipes.get_custom_messages())
                if job and job.state in WAITING:
                    listener.heard_at = time.monotonic()
                silent = time.monotonic() - listener.heard_at
                if listener.pending and silent > self.stall_timeout_seconds:
                    raise WorkerDied(
                        f"{listener.culprit} made no progress for {silent:.0f} s (stall_timeout_seconds), so Slurm job "
                        f"{job and job.id} was cancelled. What its processes printed last is in {folder.log}.",
                        listener.culprit,
                        again=False,
                    )
                if not listener.pending and silent > self.grace_seconds:
                    context.log.warning("All results are there, but the Slurm job does not end; it is cancelled.")
                    break
        if listener.pending:
            raise failure(job, [listener.culprit, *listener.pending], folder.log)

    def _states(self, context: dg.AssetExecutionContext, job_id: str) -> Iterator[Job | None]:
        """A Slurm job's states as long as it lives, then the last one; None where Slurm has forgotten the job."""
        job: Job | None = None
        told = ""
        while True:
            try:
                job = slurm_queue.look(job_id)
                news = str(job) if job else f"Slurm has forgotten job {job_id}."
                answered = True
            except Unreachable as error:
                news = f"Slurm's controller does not answer ({error}); goes on trying."
                answered = False
            if news != told:
                (context.log.info if answered else context.log.warning)(news)
                told = news
            yield job
            if answered and (job is None or job.over):
                return
            time.sleep(self.poll_seconds)

    def _arguments(self, folder: LaunchFolder, nodes: int, gpus: int) -> list[str]:
        """Options of sbatch."""
        given = {
            "job-name": folder.name,
            "output": folder.log,
            "open-mode": "append",
            "export": "ALL",
            "nodes": nodes,
            "ntasks-per-node": 1,
            "gpus-per-node": gpus or None,
            "cpus-per-task": self.cpus_per_node,
            "partition": self.partition,
            "account": self.account,
            "time": self.time_limit,
        }
        # Slurm would start the job of a lost node again by itself, unseen; Dagster's retries are seen.
        return ["--no-requeue", *(f"--{name}={value}" for name, value in given.items() if value), *self.directives]

    @contextmanager
    def _ended(self, context: dg.AssetExecutionContext, name: str) -> Iterator[None]:
        """On leaving, however that comes about, no Slurm job of this name is left."""
        try:
            yield
        finally:
            self._end(context, name)

    def _end(self, context: dg.AssetExecutionContext, name: str) -> None:
        try:
            if slurm_queue.find(name):
                slurm_queue.cancel(name)
            limit = time.monotonic() + self.grace_seconds
            while job := slurm_queue.find(name):
                if time.monotonic() > limit:
                    context.log.warning(f"{job}; it was cancelled {self.grace_seconds:.0f} s ago and is not gone yet.")
                    return
                time.sleep(GONE_POLL_SECONDS)
        except (Unreachable, Refused) as error:
            context.log.warning(f"The Slurm job could not be cancelled ({error}); `scancel --name={name}` does that.")


def batch_script(folder: LaunchFolder, nodes: int, processes: int, cpus: int | None) -> str:
    """One torchrun on each node; they meet on the first, where the batch script runs."""
    srun = ["srun", "--ntasks-per-node=1", "--kill-on-bad-exit=1"]
    # srun does not take this over from sbatch.
    srun += [f"--cpus-per-task={cpus}"] if cpus else []
    torchrun = [sys.executable, "-m", "torch.distributed.run", f"--nnodes={nodes}", f"--nproc-per-node={processes}"]
    worker = ["-m", WORKER, str(folder.path / "request.json")]
    return f"""\
#!/bin/bash
export PYTHONUNBUFFERED=1 PYTHONFAULTHANDLER=1
# torchrun would give each of several processes one thread.
threads=$((SLURM_CPUS_ON_NODE / {processes}))
export OMP_NUM_THREADS=${{OMP_NUM_THREADS:-$((threads > 0 ? threads : 1))}}
# Below the ports that the kernel gives away, and another one for each job.
endpoint=$(hostname):$((15000 + SLURM_JOB_ID % 15000))
exec {shlex.join(srun)} {shlex.join(torchrun)} \\
    --rdzv-backend=c10d --rdzv-id="$SLURM_JOB_ID" --rdzv-endpoint="$endpoint" \\
    {shlex.join(worker)}
"""


def failure(job: Job | None, missing: Sequence[str], log: Path) -> Exception:
    """Why a Slurm job that is over left jobs without an outcome: `dg.Failure` where no other is to be submitted.

    The first that is missing was at work.
    """
    if job is None:
        how = "is unknown to Slurm by now and ended"
    elif job.state in ENDINGS:
        how = ENDINGS[job.state].format(limit=job.time_limit, lost=_lost(job) or job.nodes, nodes=job.nodes)
    else:
        lost = _lost(job)
        how = f"{job.state.lower()}, because {lost} does not answer any more," if lost else job.state.lower()
    text = (
        f"{f'Slurm job {job.id}' if job else 'The Slurm job'} {how} before it had a result for "
        f"{', '.join(dict.fromkeys(missing))}. What its processes printed last is in this step's stderr and in {log}."
    )
    if job and job.state in ADVICE:
        text = f"{text} {ADVICE[job.state]}"
    if job and job.state in FINAL:
        return dg.Failure(text, allow_retries=False)
    return WorkerDied(text, missing[0], again=job is None or job.state != "OUT_OF_MEMORY")


def _lost(job: Job) -> str:
    with suppress(Unreachable, Refused):
        return ", ".join(slurm_queue.lost(job.nodes)) if job.nodes else ""
    return ""


def _environment() -> dict[str, str]:
    """This process's, without what describes the Slurm job that it may be part of."""
    return {name: value for name, value in os.environ.items() if not name.startswith("SLURM_") or name == "SLURM_CONF"}


def _print(log: Tail) -> None:
    for piece in log.pieces():
        sys.stderr.write(piece.decode(errors="replace"))
    sys.stderr.flush()
