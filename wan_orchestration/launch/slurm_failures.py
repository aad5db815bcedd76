"""Says how a Slurm job failed, and whether a retry may help."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import dagster as dg

from wan_orchestration.launch import slurm_queue
from wan_orchestration.launch.launcher import WorkerDied
from wan_orchestration.launch.slurm_queue import SlurmJob, SlurmRejected, SlurmUnreachable

STATE_WORDS = {
    "TIMEOUT": "was stopped at its time limit ({limit})",
    "NODE_FAIL": "lost a node ({unresponsive})",
    "BOOT_FAIL": "got a node that did not boot ({nodes})",
    "PREEMPTED": "had to make room for another job",
    "DEADLINE": "had not ended at its deadline",
    "COMPLETED": "ended",
    "CANCELLED": "was cancelled by somebody else (scancel)",
    "OUT_OF_MEMORY": "used more main memory than Slurm had given it",
    "RUNNING": "was done",
}
"""How a job ended, by its final state. A warm one that is done with a request keeps running."""
ADVICE = {
    "TIMEOUT": "A retry resumes after the last finished segment; with a longer time_limit no retry is needed.",
    "OUT_OF_MEMORY": 'Ask for more in the directives, for instance "--mem=200G".',
}
DELIBERATE_STATES = {"CANCELLED", "DEADLINE"}
"""Final states that somebody intended, so the step does not retry."""


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
