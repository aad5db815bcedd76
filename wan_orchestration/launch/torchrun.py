"""Runs the worker on this machine, under torchrun and through Dagster Pipes, in launches that can outlive a run.

Each launch has a keeper (`launch/keeper.py`), which is the parent of its torchrun and ends the whole process tree:

- The step is cancelled, fails or dies: the keeper notices that the step's connection closes. A launch that stays warm
  stops at the next denoising step. Any other launch ends; after a grace period its processes are killed.
- The keeper is killed: torchrun dies with it (`setpriv --pdeathsig`), and the ranks die with torchrun (`worker.py`).
- The worker hangs: its processes write their stacks to the log, then they are killed.

The processes write to a file, which the step copies to its own stderr, so no pipe can fill up and block them.
"""

import json
import os
import secrets
import select
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Literal, cast

import dagster as dg
from pydantic import Field, PrivateAttr

from wan_orchestration.launch.gpus import Devices, Gpus
from wan_orchestration.launch.keeper import Start
from wan_orchestration.launch.key import launch_key
from wan_orchestration.launch.launch import POLL_SECONDS, Launch
from wan_orchestration.launch.launcher import KEEPER, WORKER, Launcher, WorkerDied
from wan_orchestration.launch.pipes import Outcome, job_ids
from wan_orchestration.launch.processes import dagster_service
from wan_orchestration.protocol import launches
from wan_orchestration.protocol.leases import Lease, Place, Wish, queued
from wan_orchestration.protocol.lines import Line
from wan_orchestration.protocol.messages import PreprocessOutcome, PreprocessRequest, Request, Result

DEVICES_TAG = "wan/devices"
WARM_SECONDS = 300.0
"""How long a launch on GPUs stays by default."""


class TorchrunClient(Launcher):
    """Launches `torchrun` on leased GPUs of this machine, or takes over launches that earlier runs left there."""

    gpus: dg.ResourceDependency[Gpus]
    processes: int = Field(default=1, ge=1, description="Processes (ranks) of a launch, each on a GPU of its own.")
    parallelism: Literal["auto", "sequence", "jobs"] = Field(
        default="auto",
        description="What several processes do. sequence: they work on one video together; jobs: each works on a video "
        "of its own, which needs the whole model on each GPU but no communication; auto: jobs if there are at least as "
        "many videos as processes, else sequence.",
    )
    keep_warm_seconds: float | None = Field(
        default=None,
        ge=0,
        description="How long a launch stays after its last job, with its models loaded, for the next run that needs "
        "the same devices. It leaves earlier if somebody else waits for one of them. 0: it ends with its run. "
        f"Default: {WARM_SECONDS:.0f} on GPUs, 0 on the CPU.",
    )
    grace_seconds: float = Field(
        default=10.0,
        ge=0,
        description="How long a cancelled launch that does not stay warm may take to stop by itself before it is "
        "killed.",
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
    _kept: list[Launch] = PrivateAttr(default_factory=list)
    """Launches that made clips, for the other requests of this run."""

    def teardown_after_execution(self, context: dg.InitResourceContext) -> None:
        self._give_back_kept()

    def generate(self, context: dg.AssetExecutionContext, request: Request) -> Generator[Result]:
        requests = self._split(context, request)
        processes = 1 if self._one_each(request) else self.processes
        with self._working(context, requests, processes) as working:
            yield from cast(Iterator[Result], self._outcomes(working))
        for launch in working:
            launch.give_back()

    def preprocess(self, context: dg.AssetExecutionContext, request: PreprocessRequest) -> PreprocessOutcome:
        with self._working(context, [request], 0) as working:
            (outcome,) = self._outcomes(working)
        # Held until the run ends, so that the video is made by the same processes.
        self._kept = working
        return cast(PreprocessOutcome, outcome)

    def _one_each(self, request: Request) -> bool:
        """Whether each process makes videos of its own."""
        return self.parallelism == "jobs" or (self.parallelism == "auto" and len(request.tasks) >= self.processes)

    def _split(self, context: dg.AssetExecutionContext, request: Request) -> list[Request]:
        """One request for each launch."""
        count, tasks, separate = self.processes, request.tasks, self._one_each(request)
        if count > 1:
            how = f"one video on each of {count} devices" if separate else f"each video on {count} devices together"
            why = f"{len(tasks)} videos, {count} devices" if self.parallelism == "auto" else "as configured"
            context.log.info(f"Generates {how} ({why}).")
        if not separate:
            return [request]
        return [request.model_copy(update={"tasks": tasks[n::count]}) for n in range(min(count, len(tasks)))]

    @contextmanager
    def _working(
        self, context: dg.AssetExecutionContext, requests: Sequence[Request | PreprocessRequest], processes: int
    ) -> Iterator[list[Launch]]:
        """A launch for each request, at work on it. Cancels them if the block is left by an exception."""
        working: list[Launch] = []
        try:
            self._find_launches(context, requests, processes, working)
            for launch, request in zip(working, requests, strict=True):
                launch.begin(context, request)
            yield working
        except BaseException:
            for launch in working:
                launch.cancel()
            raise

    def _outcomes(self, working: Sequence[Launch]) -> Iterator[Outcome]:
        """Outcomes of several launches, until all are done. Then raises the first WorkerDied among them."""
        first_error: WorkerDied | None = None
        while busy := [launch for launch in working if launch.busy]:
            select.select([launch.line for launch in busy], [], [], POLL_SECONDS)
            for launch in busy:
                try:
                    yield from launch.poll(self.stall_timeout_seconds)
                except WorkerDied as error:
                    first_error = first_error or error
        if first_error:
            raise first_error

    def _find_launches(
        self,
        context: dg.AssetExecutionContext,
        requests: Sequence[Request | PreprocessRequest],
        processes: int,
        found: list[Launch],
    ) -> None:
        """Add a launch for each request to `found`: one that this run has, one that is idle, or a new one.

        `processes` is the number of ranks of each; 0: one, but idle launches with more will do.
        """
        kept = [launch for launch in self._kept if launch.is_alive() and processes in (0, launch.processes)]
        if kept and len(requests) == 1:
            self._kept = []
            found += kept
            return
        # A run that waits for devices must not hold any, or two runs could wait for each other.
        self._give_back_kept()
        count = max(1, processes)
        devices = self.gpus.find(len(requests) * count)
        holder = f"run {context.run.run_id[:8]} ({_job_names(requests)})"
        search = _Search(self, devices, context.run.run_id, holder, requests[0].snapshot, processes)
        with queued(devices.lease_folder, devices.names, holder, search.wish) as place:
            while search.fill(place, len(requests), found) < len(requests):
                place.explain(count * len(requests), context.log.info)
                time.sleep(POLL_SECONDS)
        names = ", ".join(name for launch in found for name in launch.devices)
        context.instance.add_run_tags(context.run.run_id, {DEVICES_TAG: names})
        if warm := sum(launch.is_warm for launch in found):
            context.log.info(f"Takes over {'the warm launch' if warm == 1 else f'{warm} warm launches'} on {names}.")

    def _give_back_kept(self) -> None:
        for launch in self._kept:
            launch.give_back()
        self._kept = []

    def start(self, devices: Devices, lease: Lease, key: str, run: str, holder: str) -> Launch:
        """Start a launch on leased devices. Its keeper holds them too, so the caller can close the lease."""
        folder = launches.root() / secrets.token_hex(4)
        folder.mkdir()
        count = len(lease.devices)
        ours, theirs = socket.socketpair()
        start = Start(
            command=self._command(folder, count),
            key=key,
            run=run,
            holder=holder,
            devices=lease.devices,
            processes=count,
            descriptors=lease.descriptors,
            lease_folder=str(devices.lease_folder),
            keep_warm_seconds=self._warm_seconds(devices),
            grace_seconds=self.grace_seconds,
            owner=dagster_service(),
        )
        (folder / "start.json").write_text(json.dumps(asdict(start)))
        with (folder / launches.LOG).open("ab") as log, theirs:
            subprocess.Popen(
                [sys.executable, "-m", KEEPER, str(folder), str(theirs.fileno())],
                env={**self._variables(devices), **devices.variables(lease), "WAN_LAUNCH": str(folder)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=[theirs.fileno(), *lease.descriptors],
            )
        return Launch(Line(ours), folder, lease.devices, count, self.grace_seconds)

    def key(self, devices: Devices) -> str:
        """A hash of everything that a launch keeps from its start, other than its devices."""
        seconds = self._warm_seconds(devices)
        return launch_key(self._variables(devices), always=self.environment, keep_warm_seconds=seconds)

    def _warm_seconds(self, devices: Devices) -> float:
        if self.keep_warm_seconds is None:
            return WARM_SECONDS if devices.cuda else 0.0
        return self.keep_warm_seconds

    def _command(self, folder: Path, processes: int) -> list[str]:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nnodes=1"]
        command += [f"--nproc-per-node={processes}", "--local-addr=127.0.0.1", f"--log-dir={folder}"]
        command += [f"--shutdown-timeout={max(1, int(self.grace_seconds))}", "-m", WORKER]
        if setpriv := shutil.which("setpriv"):
            return [setpriv, "--pdeathsig", "KILL", "--", *command]
        return command

    def _variables(self, devices: Devices) -> dict[str, str]:
        # If this is not set, torchrun gives each of several processes one thread; on a CPU, cores would stay idle.
        return {
            "OMP_NUM_THREADS": str(devices.threads),
            **os.environ,
            "PYTHONUNBUFFERED": "1",
            "PYTHONFAULTHANDLER": "1",
            **self.environment,
        }


class _Search:
    """Finds launches for a run that has a place in the queue."""

    def __init__(
        self, client: TorchrunClient, devices: Devices, run: str, holder: str, snapshot: Path | None, processes: int
    ) -> None:
        self.client, self.devices, self.run, self.holder = client, devices, run, holder
        self.snapshot, self.processes = snapshot, processes
        self.wish = Wish(client.key(devices), processes)

    def fill(self, place: Place, wanted: int, found: list[Launch]) -> int:
        """Add launches to `found` until there are as many as `wanted` or none is available; returns how many there are.

        Prefers an idle launch with this snapshot's models to free devices, and free devices to other idle launches.
        """
        if not place.is_first():
            return len(found)
        idle = [launch for launch in launches.running() if self._suits(launch)]
        alike = [launch for launch in idle if self.snapshot is None or launch.snapshot in (self.snapshot, None)]
        self._take_over(alike, wanted, found)
        while len(found) < wanted and (lease := place.lock(max(1, self.processes))):
            with closing(lease):
                found.append(self.client.start(self.devices, lease, self.wish.key, self.run, self.holder))
        self._take_over([launch for launch in idle if launch not in alike], wanted, found)
        return len(found)

    def _take_over(self, idle: Sequence[launches.LaunchInfo], wanted: int, found: list[Launch]) -> None:
        for info in idle:
            if len(found) < wanted and (line := launches.take_over(info, self.run, self.holder)):
                folder, grace = launches.root() / info.id, self.client.grace_seconds
                found.append(Launch(line, folder, info.devices, info.processes, grace, is_warm=True))

    def _suits(self, info: launches.LaunchInfo) -> bool:
        """Whether an idle launch can be taken over."""
        ours = set(info.devices) <= set(self.devices.names) and self.wish.allows(info.key, info.processes)
        return ours and info.state == "idle"


def _job_names(requests: Sequence[Request | PreprocessRequest]) -> str:
    first, *others = [job for request in requests for job in job_ids(request)]
    return f"{first} and {len(others)} more" if others else first
