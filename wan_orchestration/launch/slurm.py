"""Runs the worker on a Slurm cluster: one `sbatch`, and in it one torchrun on each node.

A step that is cancelled or fails cancels its Slurm job and waits until the job is gone. A step that is killed leaves
the job running. The next step with the same request takes the job over, with all that it has reported so far. The next
step with another request for the same outputs cancels the job first.

With `keep_warm_seconds`, a Slurm job waits for the next request (`launch/slurm_warm.py`). A step that is cancelled or
fails then cancels its order, and the Slurm job only if that does not stop it in time.
"""

import os
import shlex
import sys
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import dagster as dg
from pydantic import Field, field_validator

from wan_orchestration.launch import slurm_queue, slurm_warm
from wan_orchestration.launch.key import launch_key
from wan_orchestration.launch.launcher import WORKER, Launcher, WorkerDied
from wan_orchestration.launch.pipes import LaunchMonitor, Outcome, job_ids, pipes_session
from wan_orchestration.launch.slurm_failures import failure
from wan_orchestration.launch.slurm_folder import LaunchFolder, SlurmFolder, discard
from wan_orchestration.launch.slurm_queue import SlurmJob, SlurmRejected, SlurmUnreachable
from wan_orchestration.launch.slurm_warm import WarmLaunch
from wan_orchestration.launch.tail import Tail, TailMessageReader
from wan_orchestration.protocol.messages import PreprocessOutcome, PreprocessRequest, Request, Result
from wan_orchestration.settings.environment import environment

CANCEL_POLL_SECONDS = 0.5
CANCEL_SECONDS = 60.0
"""How long a warm Slurm job may take to stop a request. A denoising step must fit into it."""
YIELD_SECONDS = 10.0
"""How long a Slurm job must have been waiting in the queue before idle ones make way for it."""

WAITING_STATES = {"PENDING", "CONFIGURING"}
"""States in which the worker does not run yet."""


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
    keep_warm_seconds: float = Field(
        default=0.0,
        ge=0,
        description="How long a Slurm job stays after its last request, with its models loaded, for the next run with "
        "the same settings of this resource. It holds its nodes meanwhile, whoever else waits for them. 0: it ends "
        "with its request.",
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
            with folder.locked(), self._cancelled_on_exit(context, folder):
                for other in folder.conflicting_launches():
                    context.log.info(f"Cancels the launch {other.name}, which writes to the same outputs.")
                    self._cancel(context, other)
                    discard(other)
                yield from self._follow(context, folder, nodes, gpus)
                discard(folder.path)
        except SlurmUnreachable as error:
            raise WorkerDied(f"Slurm's controller does not answer: {error}", job_ids(request)[0]) from error
        except SlurmRejected as error:
            raise dg.Failure(f"Slurm rejected the job: {error}", allow_retries=False) from error

    def _follow(
        self, context: dg.AssetExecutionContext, folder: LaunchFolder, nodes: int, gpus: int
    ) -> Iterator[Outcome]:
        """Have a Slurm job work on the request, or find the one of an earlier run. Yields outcomes until it is done."""
        work = self._find_running(context, folder)
        finished = work is None and folder.has_all_videos()
        if work is None and not finished:
            script = self._script([str(folder.path / "request.json")], nodes, gpus)
            folder.write("" if self.keep_warm_seconds else script)
        reader = TailMessageReader(folder.messages)
        with pipes_session(context, folder.request, dg.PipesEnvContextInjector(), reader=reader) as session:
            if finished:
                context.log.info("The Slurm job of an earlier run is done; its videos are complete.")
                work, states = Work("", folder), iter([None])
            else:
                if work:
                    context.log.info(f"Takes over the Slurm job {work.job_id} of an earlier run, {work.folder.name}.")
                work = work or self._begin(context, folder, session.get_bootstrap_env_vars(), nodes, gpus)
                states = self._poll(context, folder.root, work)
            monitor = LaunchMonitor(context, folder.request)
            job = None
            for job in states:
                reader.read()
                work.log.copy_to_stderr()
                yield from monitor.process(session.get_custom_messages())
                if job and job.state in WAITING_STATES:
                    monitor.active_at = time.monotonic()
                if self._is_stuck(context, work, monitor):
                    break
        if monitor.pending:
            raise failure(job, [monitor.current_job, *monitor.pending], work.folder.log)

    def _find_running(self, context: dg.AssetExecutionContext, folder: LaunchFolder) -> "Work | None":
        """The Slurm job that an earlier run with the same request left behind, if it still works."""
        for launch in slurm_warm.working_on(folder.root, folder.name):
            job = slurm_queue.find(launch.name)
            if job is None:
                discard(launch.path)
            elif job.state == "COMPLETING" or launch.orders.is_cancelled:
                self._cancel_order(context, launch)
            else:
                return Work(job.id, launch)
        job = slurm_queue.find(folder.name)
        if job and job.state == "COMPLETING":
            # The job has ended, but a node has not confirmed that yet.
            self._cancel_job(context, folder.name)
            return None
        return Work(job.id, folder) if job else None

    def _begin(
        self,
        context: dg.AssetExecutionContext,
        folder: LaunchFolder,
        variables: Mapping[str, str],
        nodes: int,
        gpus: int,
    ) -> "Work":
        """Submit a Slurm job for the request, or take over an idle one. `variables` are those of the Pipes session."""
        if not self.keep_warm_seconds:
            return Work(self._submit(context, folder, nodes, gpus, variables), folder)
        key, order = self._key(nodes, gpus), slurm_warm.order(folder, variables)
        if taken := self._take_over(context, folder.root, key, order):
            return Work(*taken)
        launch = WarmLaunch.new(folder.root, key)
        launch.write(self._script([str(launch.orders.path), str(self.keep_warm_seconds)], nodes, gpus), order)
        try:
            return Work(self._submit(context, launch, nodes, gpus, {}), launch)
        except BaseException:
            discard(launch.path)
            raise

    def _key(self, nodes: int, gpus: int) -> str:
        """A hash of everything that a warm Slurm job keeps from its start."""
        options = self._common_options(nodes, gpus)
        return launch_key(_environment(), sbatch=options, keep_warm_seconds=self.keep_warm_seconds)

    def _submit(
        self,
        context: dg.AssetExecutionContext,
        folder: SlurmFolder,
        nodes: int,
        gpus: int,
        variables: Mapping[str, str],
    ) -> str:
        job_id = slurm_queue.submit(
            folder.script, self._arguments(folder, nodes, gpus), {**_environment(), **variables}
        )
        context.log.info(f"Submitted Slurm job {job_id}, {folder.name}; its log is {folder.log}")
        return job_id

    def _take_over(
        self, context: dg.AssetExecutionContext, root: Path, key: str, order: dict[str, Any]
    ) -> tuple[str, WarmLaunch] | None:
        """Give an order to an idle Slurm job. Returns the job's id and folder; None if there is none."""
        taken = slurm_warm.take_over(root, key, order)
        if taken is None:
            return None
        launch, job = taken
        context.log.info(f"Takes over the warm Slurm job {job.id}, {launch.name}; its log is {launch.log}")
        return job.id, launch

    def _shorten_wait(self, context: dg.AssetExecutionContext, root: Path, work: "Work") -> None:
        """While a Slurm job waits in the queue, take over another that is idle, or have idle ones make way for it."""
        if (launch := work.launch) and (taken := self._take_over(context, root, launch.key, launch.orders.order)):
            work.assign(*taken)
            self._cancel_order(context, launch)
            if launch.orders.has_ended:
                discard(launch.path)
        elif time.monotonic() - work.began > YIELD_SECONDS:
            for launch, job in slurm_warm.idle(root):
                if launch.orders.end():
                    context.log.info(f"Ends the idle Slurm job {job.id}, {launch.name}.")

    def _is_stuck(self, context: dg.AssetExecutionContext, work: "Work", monitor: LaunchMonitor) -> bool:
        """Whether all results have arrived, but the Slurm job does not end.

        Raises:
            WorkerDied: results are missing, and the worker has reported nothing for too long.
        """
        silence = time.monotonic() - monitor.active_at
        if monitor.pending and silence > self.stall_timeout_seconds:
            self._cancel_job(context, work.folder.name)
            raise WorkerDied(
                f"{monitor.current_job} made no progress for {silence:.0f} s (stall_timeout_seconds), so Slurm job "
                f"{work.job_id} was cancelled. The last output of its processes is in {work.folder.log}.",
                monitor.current_job,
                retryable=False,
            )
        if not monitor.pending and silence > self.grace_seconds:
            context.log.warning("All results have arrived, but the Slurm job does not end. Cancels it.")
            return True
        return False

    def _poll(self, context: dg.AssetExecutionContext, root: Path, work: "Work") -> Iterator[SlurmJob | None]:
        """States of the Slurm job until it is done, with the last one; None if Slurm has forgotten the job."""
        job: SlurmJob | None = None
        logged = ""
        while True:
            done = work.is_done()
            try:
                job = slurm_queue.get(work.job_id)
                line = str(job) if job else f"Slurm does not know job {work.job_id} any more."
                answered = True
            except SlurmUnreachable as error:
                line = f"Slurm's controller does not answer ({error}); retrying."
                answered = False
            if line != logged:
                (context.log.info if answered else context.log.warning)(line)
                logged = line
            yield job
            if done or (answered and (job is None or job.ended)):
                return
            if answered and job and job.state == "PENDING":
                with suppress(SlurmUnreachable, SlurmRejected):
                    self._shorten_wait(context, root, work)
            time.sleep(self.poll_seconds)

    def _arguments(self, folder: SlurmFolder, nodes: int, gpus: int) -> list[str]:
        """Arguments of sbatch for a Slurm job."""
        # Otherwise Slurm itself restarts a job that lost a node. Dagster's retries are visible in the UI.
        own = ["--no-requeue", f"--job-name={folder.name}", f"--output={folder.log}"]
        return [*own, *self._common_options(nodes, gpus)]

    def _common_options(self, nodes: int, gpus: int) -> list[str]:
        """Arguments of sbatch that are the same for all Slurm jobs."""
        given = {
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
        return [*(f"--{name}={value}" for name, value in given.items() if value), *self.directives]

    def _script(self, arguments: Sequence[str], nodes: int, gpus: int) -> str:
        return batch_script(arguments, nodes, max(1, gpus), self.cpus_per_node)

    @contextmanager
    def _cancelled_on_exit(self, context: dg.AssetExecutionContext, folder: LaunchFolder) -> Iterator[None]:
        """Stops the work on a request on exit, also after an error."""
        try:
            yield
        finally:
            self._cancel(context, folder.path)

    def _cancel(self, context: dg.AssetExecutionContext, folder: Path) -> None:
        """Stop the work on the request that has this folder. Only warns if that fails."""
        for launch in slurm_warm.working_on(folder.parent, folder.name):
            self._cancel_order(context, launch)
        self._cancel_job(context, folder.name)

    def _cancel_order(self, context: dg.AssetExecutionContext, launch: WarmLaunch) -> None:
        """Stop what a warm Slurm job works on, so that it becomes idle. Cancels the job if that takes too long."""
        number = launch.orders.order["number"]
        launch.orders.cancel(number)
        deadline = time.monotonic() + CANCEL_SECONDS
        with suppress(SlurmUnreachable, SlurmRejected):
            # A job that waits for its nodes has nothing loaded.
            while (job := slurm_queue.find(launch.name)) and job.state == "RUNNING" and time.monotonic() < deadline:
                if launch.is_done(number):
                    return
                time.sleep(CANCEL_POLL_SECONDS)
            if job is None:
                return
        # Another step may have given it work in the meantime.
        if launch.orders.end(number):
            self._cancel_job(context, launch.name)

    def _cancel_job(self, context: dg.AssetExecutionContext, name: str) -> None:
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


class Work:
    """The Slurm job that works on a request.

    Args:
        job_id: Slurm's.
        folder: of the Slurm job.
    """

    def __init__(self, job_id: str, folder: SlurmFolder) -> None:
        self.assign(job_id, folder)

    def assign(self, job_id: str, folder: SlurmFolder) -> None:
        """Set the Slurm job. For a warm one, the last order in its folder is for the request."""
        self.job_id, self.folder, self.began = job_id, folder, time.monotonic()
        self.launch = folder if isinstance(folder, WarmLaunch) else None
        self._order = self.launch.orders.order if self.launch else {"log_bytes": 0}
        self.log = Tail(folder.log, self._order["log_bytes"])

    def is_done(self) -> bool:
        """Whether a warm Slurm job is done with the request."""
        return self.launch is not None and self.launch.is_done(self._order["number"])


def batch_script(arguments: Sequence[str], nodes: int, processes: int, cpus: int | None) -> str:
    """Starts one torchrun on each node. They meet on the first node, where the batch script runs.

    `arguments` are those of the worker.
    """
    srun = ["srun", "--ntasks-per-node=1", "--kill-on-bad-exit=1"]
    # srun does not inherit this from sbatch.
    srun += [f"--cpus-per-task={cpus}"] if cpus else []
    torchrun = [sys.executable, "-m", "torch.distributed.run", f"--nnodes={nodes}", f"--nproc-per-node={processes}"]
    worker = ["-m", WORKER, *arguments]
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


def _environment() -> dict[str, str]:
    """This process's environment without the variables of a Slurm job that it may be part of."""
    return {name: value for name, value in os.environ.items() if not name.startswith("SLURM_") or name == "SLURM_CONF"}
