"""Slurm's queue through its commands: submit a job, look it up, cancel it."""

import math
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import dagster as dg

COMMAND_SECONDS = 120
"""Slurm's commands try for about half a minute to reach a controller that is down."""

FINAL_STATES = {
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

TRANSIENT_ERRORS = (
    "Unable to contact slurm controller",
    "Socket timed out",
    "temporarily unable to accept job",
    "Resource temporarily unavailable",
    "Transport endpoint is not connected",
    "Communication connection failure",
)
"""Messages of Slurm's commands after which a retry can help."""

TIME = re.compile(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)")
"""How squeue prints a time."""


class SlurmUnreachable(RuntimeError):
    """The controller does not answer, or is too busy."""


class SlurmRejected(RuntimeError):
    """Slurm refuses a command; the text is Slurm's own."""


@dataclass(frozen=True)
class SlurmJob:
    """A job as squeue shows it."""

    id: str
    state: str
    reason: str
    """Why it waits, or how it ended; "None" if Slurm gives no reason."""
    time_limit: str
    time_left: str
    """Until its time limit: DAYS-HH:MM:SS without leading zeros, or a word such as UNLIMITED."""
    nodes: str
    """Slurm's short form, n[1-2]; empty until the job has its nodes."""

    @property
    def ended(self) -> bool:
        return self.state in FINAL_STATES

    @property
    def seconds_left(self) -> float:
        """Until its time limit; 0 if Slurm does not know."""
        if self.time_left == "UNLIMITED":
            return math.inf
        if not (match := TIME.fullmatch(self.time_left)):
            return 0.0
        days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
        return 86400.0 * days + 3600 * hours + 60 * minutes + seconds

    def __str__(self) -> str:
        nodes = f" on {self.nodes}" if self.nodes else ""
        reason = f", {self.reason}" if self.reason != "None" else ""
        return f"Slurm job {self.id}: {self.state.lower()}{nodes}{reason}"


def submit(script: Path, options: Sequence[str], environment: Mapping[str, str]) -> str:
    """Submit a batch script; returns the job's id. Raises SlurmRejected, SlurmUnreachable."""
    # --parsable prints only the id, or id;cluster if there are several clusters.
    return _run(["sbatch", "--parsable", *options, str(script)], environment).strip().split(";")[0]


def find(name: str) -> SlurmJob | None:
    """This user's unfinished job of this name; None if there is none. Raises SlurmRejected, SlurmUnreachable."""
    jobs = _squeue("--me", f"--name={name}")
    return jobs[0] if jobs else None


def get(job_id: str) -> SlurmJob | None:
    """A job; None if Slurm has forgotten it, some minutes after its end. Raises SlurmUnreachable."""
    try:
        jobs = _squeue("--states=all", f"--jobs={job_id}")
    except SlurmRejected as error:
        if "Invalid job id" in str(error):
            return None
        raise SlurmUnreachable(str(error)) from error
    return jobs[0] if jobs else None


def cancel(name: str) -> None:
    """Cancel this user's jobs of this name. Slurm sends SIGTERM, and SIGKILL after its KillWait.

    Raises SlurmRejected, SlurmUnreachable.
    """
    _run(["scancel", "--me", f"--name={name}"])


def unresponsive_nodes(nodes: str) -> list[str]:
    """Those of a job's nodes that are down or do not answer. Raises SlurmRejected, SlurmUnreachable."""
    output = _run(["sinfo", "--noheader", "--Node", f"--nodes={nodes}", "--format=%N %T"])
    states = dict(line.split() for line in output.splitlines())
    return sorted(node for node, state in states.items() if state.startswith("down") or state.endswith("*"))


def _squeue(*options: str) -> list[SlurmJob]:
    output = _run(["squeue", "--noheader", "--format=%i|%T|%r|%l|%L|%N", *options])
    return [SlurmJob(*line.split("|", 5)) for line in output.splitlines()]


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
        raise SlurmUnreachable(f"{command[0]} gave no answer within {COMMAND_SECONDS} s") from None
    if done.returncode:
        message = done.stderr.strip() or f"{command[0]} ended with exit code {done.returncode}"
        raise (SlurmUnreachable if any(text in message for text in TRANSIENT_ERRORS) else SlurmRejected)(message)
    return done.stdout
