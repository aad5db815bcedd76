"""`wan-animate batch`: all videos that are missing or out of date, from a shell or from cron."""

import argparse
import json
import shlex
import sys
import time
from collections.abc import Sequence

import dagster as dg

from wan_orchestration.cli.dagster_command import MODULE, RunFailed, execute, open_instance, variables_of
from wan_orchestration.cli.terminal import print_error, reports_errors
from wan_orchestration.defs.batch.stale import stale_jobs
from wan_orchestration.defs.jobs.run_requests import group, request_tags
from wan_orchestration.defs.jobs.scan import scan
from wan_orchestration.defs.jobs.versions import JobVersion
from wan_orchestration.errors import BadInput, validate
from wan_orchestration.jobs.folder import Job
from wan_orchestration.settings.environment import environment
from wan_orchestration.settings.service import BatchSettings, DropSettings

FAILED, NOTHING_TO_DO, SOME_FAILED = 1, 3, 4


@reports_errors()
def main(argv: Sequence[str]) -> int:
    """`wan-animate batch`."""
    parser = argparse.ArgumentParser(
        "wan-animate batch",
        description="Make all videos that are missing or out of date through Dagster, the most urgent first. One "
        "launch makes many.",
        epilog=f"Exit codes: 0 all were made; {NOTHING_TO_DO} nothing to do; {SOME_FAILED} some were made, others "
        f"failed; {FAILED} none was made.",
    )
    parser.add_argument("--dry-run", action="store_true", help="only print what would be made")
    parser.add_argument("--limit", type=int, metavar="N", help="make only the N most urgent videos")
    arguments = parser.parse_args(argv)
    if arguments.limit is not None and arguments.limit < 1:
        parser.error(f"--limit {arguments.limit}: expected 1 or more")
    return batch(arguments.limit, arguments.dry_run)


def batch(limit: int | None, dry_run: bool) -> int:
    """Make the videos; returns the exit code. BadInput: no weights, or no folder of jobs."""
    instance, most = open_instance(), validate(BatchSettings, {}).max_jobs_per_run
    rejected = _register_new(instance)
    jobs, unusable, waiting = stale_jobs(instance)
    for reason in sorted({**rejected, **unusable}.values()):
        print(f"cannot be used: {reason}", file=sys.stderr)
    if waiting:
        print(f"Look at the clips of these jobs first, then start each with wan-animate run: {', '.join(waiting)}")
    jobs = jobs[:limit]
    if not jobs:
        print("No other video is out of date." if waiting else "All videos are up to date.")
        return NOTHING_TO_DO

    runs = group(jobs, instance.get_dynamic_partitions("jobs"), most)
    failed: list[str] = []
    for number, run in enumerate(runs, 1):
        keys = [job.key for job in run]
        command = ["dagster", "job", "execute", *MODULE, "-j", "make_videos"]
        command += ["--tags", json.dumps(request_tags(run))]
        print(f"Run {number} of {len(runs)}, {len(keys)} jobs: {', '.join(keys)}\n  {shlex.join(command)}", flush=True)
        if dry_run:
            continue
        try:
            execute(instance, command, variables_of(instance))
        except RunFailed as error:
            print_error(str(error))
            failed += sorted({job.key for job in stale_jobs(instance).jobs} & set(keys))
    if dry_run:
        return 0

    failures = f"; failed: {', '.join(failed)}" if failed else ""
    print(f"{len(jobs) - len(failed)} of {len(jobs)} videos were made{failures}")
    return 0 if not failed else FAILED if len(failed) == len(jobs) else SOME_FAILED


def _register_new(instance: dg.DagsterInstance) -> dict[str, str]:
    """Register the usable new job folders as partitions, the most urgent first.

    Returns the reason for each folder that cannot be used, by its name. BadInput: there is no folder of jobs.
    """
    env = environment()
    if not env.jobs_root.is_dir():
        raise BadInput(f"{env.jobs_root}: no such folder; expected the folder of all job folders")
    registered, settle = set(instance.get_dynamic_partitions("jobs")), validate(DropSettings, {}).settle_seconds
    new: list[JobVersion] = []
    rejected: dict[str, str] = {}
    for folder in scan(env.jobs_root):
        if folder.path.name in registered or not folder.settled(time.time(), settle):
            continue
        try:
            new.append(JobVersion.of(Job.open(folder.path), fingerprint="unread"))
        except BadInput as error:
            rejected[folder.path.name] = str(error)
    if new:
        instance.add_dynamic_partitions("jobs", [job.key for job in sorted(new, key=lambda job: job.urgency)])
    return rejected
