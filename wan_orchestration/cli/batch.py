"""`wan-animate batch`: all videos that are missing or out of date, from a shell or from cron."""

import argparse
import json
import shlex
import sys
import time
from collections.abc import Iterator, Sequence

import dagster as dg

from wan_orchestration.cli.run import RunFailed, execute, in_words, open_instance
from wan_orchestration.defs.batch.stale import stale_jobs
from wan_orchestration.defs.jobs.run_requests import group, request_tags
from wan_orchestration.defs.jobs.scan import scan
from wan_orchestration.defs.jobs.versions import JobVersion
from wan_orchestration.errors import BadInput, validate
from wan_orchestration.jobs.folder import Job
from wan_orchestration.settings.environment import DagsterHome, environment
from wan_orchestration.settings.service import BatchSettings, DropSettings

FAILED, NOTHING_TO_DO, SOME_FAILED = 1, 3, 4


def main(argv: Sequence[str]) -> int:
    """`wan-animate batch`; returns the exit code."""
    parser = argparse.ArgumentParser(
        "wan-animate batch",
        description="Make all videos that are missing or out of date through Dagster, the most urgent first, many to "
        "a launch.",
        epilog=f"Exit codes: 0 all were made; {NOTHING_TO_DO} nothing to do; {SOME_FAILED} some were made, others "
        f"failed; {FAILED} none was made.",
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what would be made")
    parser.add_argument("--limit", type=int, metavar="N", help="at most so many videos, the most urgent")
    arguments = parser.parse_args(argv)
    if arguments.limit is not None and arguments.limit < 1:
        parser.error(f"--limit {arguments.limit}: expected 1 or more")
    return in_words(lambda: batch(arguments.limit, arguments.dry_run))


def batch(limit: int | None, dry_run: bool) -> int:
    """Returns the exit code. BadInput."""
    instance, most = open_instance(), validate(BatchSettings, {}).max_jobs_per_run
    rejected = dict(_register(instance))
    asks, unusable = stale_jobs(instance)
    for reason in sorted({**rejected, **unusable}.values()):
        print(f"cannot be used: {reason}", file=sys.stderr)
    asks = asks[:limit]
    if not asks:
        print("All videos are up to date.")
        return NOTHING_TO_DO
    runs = group(asks, instance.get_dynamic_partitions("jobs"), most)
    failed: list[str] = []
    for number, run in enumerate(runs, 1):
        keys = [ask.key for ask in run]
        command = ["dagster", "job", "execute", "-m", "wan_orchestration.definitions", "-j", "make_videos"]
        command += ["--tags", json.dumps(request_tags(run))]
        print(f"Run {number} of {len(runs)}, {len(keys)} jobs: {', '.join(keys)}\n  {shlex.join(command)}", flush=True)
        if dry_run:
            continue
        try:
            execute(instance, command, {"DAGSTER_HOME": str(DagsterHome().home.absolute())})
        except RunFailed as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            left, _ = stale_jobs(instance)
            failed += sorted({ask.key for ask in left} & set(keys))
    if dry_run:
        return 0
    print(
        f"{len(asks) - len(failed)} of {len(asks)} videos were made"
        + (f"; failed: {', '.join(failed)}" if failed else "")
    )
    return 0 if not failed else FAILED if len(failed) == len(asks) else SOME_FAILED


def _register(instance: dg.DagsterInstance) -> Iterator[tuple[str, str]]:
    """Make all usable job folders known to Dagster, the urgent first; yields those that are not, with the reason."""
    env, new = environment(), []
    if not env.jobs_root.is_dir():
        raise BadInput(f"{env.jobs_root}: no such folder; expected the folder of all job folders")
    registered, settle = set(instance.get_dynamic_partitions("jobs")), validate(DropSettings, {}).settle_seconds
    for folder in scan(env.jobs_root):
        if folder.path.name in registered or not folder.settled(time.time(), settle):
            continue
        try:
            new.append(JobVersion.of(Job.open(folder.path), fingerprint="unread"))
        except BadInput as error:
            yield folder.path.name, str(error)
    if new:
        instance.add_dynamic_partitions("jobs", [ask.key for ask in sorted(new, key=lambda job: job.urgency)])
