"""Runs the worker on a Slurm cluster: one `sbatch`, and in it one torchrun on each node.

A step that is cancelled or fails cancels its Slurm job and waits until the job is gone. A step that is killed leaves
the job running. The next step with the same request takes the job over, with all that it has reported so far. The next
step with another request for the same outputs cancels the job first.
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
from wan_orchestration.launch.pipes import LaunchMonitor, Outcome, job_ids, pipes_session
from wan_orchestration.launch.slurm_folder import LaunchFolder, discard
from wan_orchestration.launch.slurm_queue import SlurmJob, SlurmRejected, SlurmUnreachable
from wan_orchestration.launch.tail import Tail, TailMessageReader
from wan_orchestration.protocol.messages import PreprocessOutcome, PreprocessRequest, Request, Result
from wan_orchestration.settings.environment import environment

CANCEL_POLL_SECONDS = 0.5

STATE_WORDS = {
    "TIMEOUT": "was stopped at its time limit ({limit})",
    "NODE_FAIL": "lost a node ({unresponsive})",
    "BOOT_FAIL": "got a node that did not boot ({nodes})",
    "PREEMPTED": "had to make room for another job",
    "DEADLINE": "had not ended at its deadline",
    "COMPLETED": "ended",
    "CANCELLED": "was cancelled by somebody else (scancel)",
    "OUT_OF_MEMORY": "used more main memory than Slurm had given it",
}
"""How a job ended, by its final state."""
ADVICE = {
    "TIMEOUT": "A retry resumes after the last finished segment; with a longer time_limit no retry is needed.",
    "OUT_OF_MEMORY": 'Ask for more in the directives, for instance "--mem=200G".',
}
WAITING_STATES = {"PENDING", "CONFIGURING"}
"""States in which the worker does not run yet."""
DELIBERATE_STATES = {"CANCELLED", "DEADLINE"}
"""Final states that somebody intended, so the step does not retry."""


class SlurmClient(Launcher):
    """Launches `torchrun` on nodes of a Slurm cluster, one Slurm job for all tasks of a request."""

    nodes: int = Field(default=1, ge=1, description="Nodes that work on one video together.")
    gpus_per_node: int = Field(
        default=1, ge=0, description="GPUs on each node, with a process for each; 0: one process per node, on its CPUs."
    )
    cpus_per_node: int | None = Field(
        default=None, ge=1, description="CPU cores on each node; default: the cluster's, often a single one."
    )
    partition: str | None = Field(default=None, description="Partition to submit to; default: the cluster's.")
    account: str | None = Field(default=None, description="Account that is charged; default: the user's.")
    time_limit: str | None = Field(
        default=None, description="Time limit in sbatch's form: MINUTES, HH:MM:SS or DAYS-HH; default: the partition's."
    )
    directives: list[str] = Field(
        default=[],
        description='More options of sbatch, for instance "--qos=high" or "--gpus-per-node=h100:4"; they override '
        "the fields above.",
    )
    work_folder: str | None = Field(
        default=None,
        description="Folder for scripts, messages and logs, on a file system that this machine and the nodes "
        "share; default: DATA_ROOT/slurm.",
    )
    poll_seconds: float = Field(
        default=5.0, gt=0, description="Seconds between checks of the Slurm job and its messages."
    )
    stall_timeout_seconds: float = Field(
        default=1800.0,
        gt=0,
        description="The step cancels a running Slurm job that begins no denoising step and no phase for so long. "
        "Loading the weights and decoding a segment are a phase each.",
    )
    grace_seconds: float = Field(
        default=90.0,
        ge=0,
        description="How long a cancelled Slurm job may take to leave its nodes, and one with all results to end.",
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
            with folder.locked(), self._cancelled_on_exit(context, folder.name):
                for other in folder.conflicting_launches():
                    context.log.info(f"Cancels the launch {other}, which writes to the same outputs.")
                    self._cancel(context, other)
                    discard(folder.root / other)
                yield from self._follow(context, folder, nodes, gpus)
                discard(folder.path)
        except SlurmUnreachable as error:
            raise WorkerDied(f"Slurm's controller does not answer: {error}", job_ids(request)[0]) from error
        except SlurmRejected as error:
            raise dg.Failure(f"Slurm rejected the job: {error}", allow_retries=False) from error

    def _follow(
        self, context: dg.AssetExecutionContext, folder: LaunchFolder, nodes: int, gpus: int
    ) -> Iterator[Outcome]:
        """Submit the launch's Slurm job, or find the job of an earlier run, and yield its outcomes until it ends."""
        job = self._find_running(context, folder)
        finished = job is None and folder.has_all_videos()
        if job is None and not finished:
            folder.write(batch_script(folder, nodes, max(1, gpus), self.cpus_per_node))
        reader, log = TailMessageReader(folder.messages), Tail(folder.log)
        with pipes_session(context, folder.request, dg.PipesEnvContextInjector(), reader) as session:
            if finished:
                context.log.info("The Slurm job of an earlier run has ended; its videos are complete.")
                states = iter([None])
            else:
                if job:
                    context.log.info(f"Takes over the Slurm job {job.id} of an earlier run, {folder.name}.")
                job_id = job.id if job else self._submit(context, folder, session, nodes, gpus)
                states = self._poll(context, job_id)
            monitor = LaunchMonitor(context, folder.request)
            for job in states:
                reader.read()
                log.copy_to_stderr()
                yield from monitor.process(session.get_custom_messages())
                if job and job.state in WAITING_STATES:
                    monitor.active_at = time.monotonic()
                if self._is_stuck(context, folder, monitor, job):
                    break
        if monitor.pending:
            raise failure(job, [monitor.current_job, *monitor.pending], folder.log)

    def _find_running(self, context: dg.AssetExecutionContext, folder: LaunchFolder) -> SlurmJob | None:
        """The Slurm job that an earlier run with the same request left behind, if it still works."""
        job = slurm_queue.find(folder.name)
        if job and job.state == "COMPLETING":
            # The job has ended, but a node has not confirmed that yet.
            self._cancel(context, folder.name)
            return None
        return job

    def _submit(
        self,
        context: dg.AssetExecutionContext,
        folder: LaunchFolder,
        session: dg.PipesSession,
        nodes: int,
        gpus: int,
    ) -> str:
        variables = {**_environment(), **session.get_bootstrap_env_vars()}
        job_id = slurm_queue.submit(folder.script, self._arguments(folder, nodes, gpus), variables)
        context.log.info(f"Submitted Slurm job {job_id}, {folder.name}; its log is {folder.log}")
        return job_id

    def _is_stuck(
        self, context: dg.AssetExecutionContext, folder: LaunchFolder, monitor: LaunchMonitor, job: SlurmJob | None
    ) -> bool:
        """Whether all results have arrived, but the Slurm job does not end.

        Raises:
            WorkerDied: results are missing, and the worker has reported nothing for too long.
        """
        silence = time.monotonic() - monitor.active_at
        if monitor.pending and silence > self.stall_timeout_seconds:
            raise WorkerDied(
                f"{monitor.current_job} made no progress for {silence:.0f} s (stall_timeout_seconds), so Slurm job "
                f"{job and job.id} was cancelled. The last output of its processes is in {folder.log}.",
                monitor.current_job,
                retryable=False,
            )
        if not monitor.pending and silence > self.grace_seconds:
            context.log.warning("All results have arrived, but the Slurm job does not end. Cancels it.")
            return True
        return False

    def _poll(self, context: dg.AssetExecutionContext, job_id: str) -> Iterator[SlurmJob | None]:
        """A Slurm job's states until it ends, with the final one; None if Slurm has forgotten the job."""
        job: SlurmJob | None = None
        logged = ""
        while True:
            try:
                job = slurm_queue.get(job_id)
                line = str(job) if job else f"Slurm does not know job {job_id} any more."
                answered = True
            except SlurmUnreachable as error:
                line = f"Slurm's controller does not answer ({error}); retrying."
                answered = False
            if line != logged:
                (context.log.info if answered else context.log.warning)(line)
                logged = line
            yield job
            if answered and (job is None or job.ended):
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
        # Otherwise Slurm itself restarts a job that lost a node. Dagster's retries are visible in the UI.
        return ["--no-requeue", *(f"--{name}={value}" for name, value in given.items() if value), *self.directives]

    @contextmanager
    def _cancelled_on_exit(self, context: dg.AssetExecutionContext, name: str) -> Iterator[None]:
        """Cancels Slurm jobs of this name on exit, also after an error."""
        try:
            yield
        finally:
            self._cancel(context, name)

    def _cancel(self, context: dg.AssetExecutionContext, name: str) -> None:
        """Cancel Slurm jobs of this name and wait until they are gone. Only warns if that fails."""
        try:
            if slurm_queue.find(name):
                slurm_queue.cancel(name)
            deadline = time.monotonic() + self.grace_seconds
            while job := slurm_queue.find(name):
                if time.monotonic() > deadline:
                    context.log.warning(f"{job}; it was cancelled {self.grace_seconds:.0f} s ago and is not gone yet.")
                    return
                time.sleep(CANCEL_POLL_SECONDS)
        except (SlurmUnreachable, SlurmRejected) as error:
            context.log.warning(
                f"The Slurm job could not be cancelled ({error}); `scancel --name={name}` cancels it by hand."
            )


def batch_script(folder: LaunchFolder, nodes: int, processes: int, cpus: int | None) -> str:
    """Starts one torchrun on each node. They meet on the first node, where the batch script runs."""
    srun = ["srun", "--ntasks-per-node=1", "--kill-on-bad-exit=1"]
    # srun does not inherit this from sbatch.
    srun += [f"--cpus-per-task={cpus}"] if cpus else []
    torchrun = [sys.executable, "-m", "torch.distributed.run", f"--nnodes={nodes}", f"--nproc-per-node={processes}"]
    worker = ["-m", WORKER, str(folder.path / "request.json")]
    return f"""\
#!/bin/bash
export PYTHONUNBUFFERED=1 PYTHONFAULTHANDLER=1
# torchrun gives each of several processes one thread unless this is set.
threads=$((SLURM_CPUS_ON_NODE / {processes}))
export OMP_NUM_THREADS=${{OMP_NUM_THREADS:-$((threads > 0 ? threads : 1))}}
# Below the kernel's range of ephemeral ports, and different for each job.
endpoint=$(hostname):$((15000 + SLURM_JOB_ID % 15000))
exec {shlex.join(srun)} {shlex.join(torchrun)} \\
    --rdzv-backend=c10d --rdzv-id="$SLURM_JOB_ID" --rdzv-endpoint="$endpoint" \\
    {shlex.join(worker)}
"""


def failure(job: SlurmJob | None, missing: Sequence[str], log: Path) -> Exception:
    """The error for a Slurm job that ended and left jobs without an outcome: `dg.Failure` if somebody intended that.

    The worker was working on the first of the missing jobs.
    """
    unresponsive = _unresponsive_nodes(job) if job else ""
    if job is None:
        how = "ended, and Slurm has forgotten it,"
    elif job.state in STATE_WORDS:
        words = STATE_WORDS[job.state]
        how = words.format(limit=job.time_limit, unresponsive=unresponsive or job.nodes, nodes=job.nodes)
    elif unresponsive:
        how = f"{job.state.lower()}, because {unresponsive} does not answer any more,"
    else:
        how = job.state.lower()
    text = (
        f"{f'Slurm job {job.id}' if job else 'The Slurm job'} {how} before it had a result for "
        f"{', '.join(dict.fromkeys(missing))}. The last output of its processes is in this step's stderr and in {log}."
    )
    if job and job.state in ADVICE:
        text = f"{text} {ADVICE[job.state]}"
    if job and job.state in DELIBERATE_STATES:
        return dg.Failure(text, allow_retries=False)
    return WorkerDied(text, missing[0], retryable=job is None or job.state != "OUT_OF_MEMORY")


def _unresponsive_nodes(job: SlurmJob) -> str:
    with suppress(SlurmUnreachable, SlurmRejected):
        return ", ".join(slurm_queue.unresponsive_nodes(job.nodes)) if job.nodes else ""
    return ""


def _environment() -> dict[str, str]:
    """This process's environment without the variables of a Slurm job that it may be part of."""
    return {name: value for name, value in os.environ.items() if not name.startswith("SLURM_") or name == "SLURM_CONF"}
