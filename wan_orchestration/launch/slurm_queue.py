"""Slurm's queue by its commands: submit a job, look at it, cancel it."""

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import dagster as dg

COMMAND_SECONDS = 120
"""Slurm's commands try for about half a minute to reach a controller that is down."""

OVER = {
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "REVOKED",
    "TIMEOUT",
}
"""States that a job does not leave; https://slurm.schedmd.com/squeue.html#lbAG"""

PASSING = (
    "Unable to contact slurm controller",
    "Socket timed out",
    "temporarily unable to accept job",
    "Resource temporarily unavailable",
    "Transport endpoint is not connected",
    "Communication connection failure",
)
"""What Slurm's commands say where trying again later can help."""


class Unreachable(RuntimeError):
    """The controller does not answer, or is too busy."""


class Refused(RuntimeError):
    """Slurm will not do what it was asked; the text is its own."""


@dataclass(frozen=True)
class Job:
    """A job as squeue shows it."""

    id: str
    state: str
    reason: str
    """Why it waits, or how it ended; "None" where Slurm knows none."""
    time_limit: str
    nodes: str
    """Slurm's short form, n[1-2]; empty until the job has its nodes."""

    @property
    def over(self) -> bool:
        return self.state in OVER

    def __str__(self) -> str:
        where = f" on {self.nodes}" if self.nodes else ""
        why = f", {self.reason}" if self.reason != "None" else ""
        return f"Slurm job {self.id}: {self.state.lower()}{where}{why}"


def submit(script: Path, options: Sequence[str], environment: Mapping[str, str]) -> str:
    """Submit a batch script; returns the job's id. Refused, Unreachable."""
    # --parsable: the id alone, or id;cluster where there are several clusters.
    return _run(["sbatch", "--parsable", *options, str(script)], environment).strip().split(";")[0]


def find(name: str) -> Job | None:
    """This user's job of this name that has not ended, if there is one. Unreachable."""
    jobs = _squeue("--me", f"--name={name}")
    return jobs[0] if jobs else None


def look(job_id: str) -> Job | None:
    """A job, also for some minutes after its end; None once Slurm has forgotten it. Unreachable."""
    try:
        jobs = _squeue("--states=all", f"--jobs={job_id}")
    except Refused as error:
        if "Invalid job id" in str(error):
            return None
        raise Unreachable(str(error)) from error
    return jobs[0] if jobs else None


def cancel(name: str) -> None:
    """Have Slurm end this user's jobs of this name: SIGTERM, and SIGKILL after its KillWait. Unreachable."""
    _run(["scancel", "--me", f"--name={name}"])


def lost(nodes: str) -> list[str]:
    """Those of a job's nodes that are down or do not answer."""
    shown = _run(["sinfo", "--noheader", "--Node", f"--nodes={nodes}", "--format=%N %T"])
    states = dict(line.split() for line in shown.splitlines())
    return sorted(node for node, state in states.items() if state.startswith("down") or state.endswith("*"))


def _squeue(*options: str) -> list[Job]:
    shown = _run(["squeue", "--noheader", "--format=%i|%T|%r|%l|%N", *options])
    return [Job(*line.split("|", 4)) for line in shown.splitlines()]


def _run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    try:
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=COMMAND_SECONDS
        )
    except FileNotFoundError:
        raise dg.Failure(
            f"{command[0]} was not found: Slurm's commands are not on the PATH of this machine, which runs Dagster. "
            "Run Dagster on a login node or install the cluster's slurm-client here, or set WAN_LAUNCHER=torchrun to "
            "use this machine's own GPUs.",
            allow_retries=False,
        ) from None
    except subprocess.TimeoutExpired:
        raise Unreachable(f"{command[0]} gave no answer within {COMMAND_SECONDS} s") from None
    if done.returncode:
        words = done.stderr.strip() or f"{command[0]} ended with exit code {done.returncode}"
        raise (Unreachable if any(text in words for text in PASSING) else Refused)(words)
    return done.stdout
