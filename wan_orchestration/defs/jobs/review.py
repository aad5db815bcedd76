"""Jobs whose clips somebody looks at before their video is made: `review: true` in `job.yaml` or in a request."""

from collections.abc import Mapping

import dagster as dg

from wan_orchestration.defs.freshness import clips_are_fresh
from wan_orchestration.defs.jobs.run_requests import CLIPS, VIDEO
from wan_orchestration.defs.jobs.versions import JobVersion

REVIEW = "wan/review"
"""Tag of runs, and of the clips that they make. `WANTED`: the clips are to be looked at; `DONE`: somebody has started
the video of such clips."""
WANTED, DONE = "wanted", "done"

STATE, READY, SUPERSEDED = "wan/state", "ready", "superseded"
"""Tag of a run that has made clips to look at: `READY` until the job's next run begins."""


def mark_ready(instance: dg.DagsterInstance, run: dg.DagsterRun) -> None:
    """Tags a run whose clips wait for somebody to look at them."""
    instance.add_run_tags(run.run_id, {STATE: READY})


def supersede(instance: dg.DagsterInstance, key: str) -> None:
    """Tags the earlier runs of a job that begins another run."""
    for run in instance.get_runs(dg.RunsFilter(tags={STATE: READY, "dagster/partition": key})):
        instance.add_run_tags(run.run_id, {STATE: SUPERSEDED})


def newest_plan(instance: dg.DagsterInstance, key: str) -> tuple[dg.AssetKey, str] | None:
    """What the job's newest run is to make, `VIDEO` or only `CLIPS`, and the run's id. None: there is no such run."""
    plans = {asset: instance.get_latest_planned_materialization_info(asset, key) for asset in (VIDEO, CLIPS)}
    found = {asset: plan for asset, plan in plans.items() if plan}
    if not found:
        return None
    newest = max(found.values(), key=lambda plan: plan.storage_id).run_id
    # A run that makes both has planned both.
    return next((asset, newest) for asset in found if found[asset].run_id == newest)


def waits_for_look(instance: dg.DagsterInstance, job: JobVersion, clips: Mapping[str, str]) -> bool:
    """Whether the job's video must not be made before somebody has looked at its clips.

    `clips` are the tags of the job's latest clips. Once a person has started the video of these clips, it may be made
    again, for instance by the nightly batch.
    """
    fresh = clips_are_fresh(clips, job)
    if job.review and not fresh:
        return True
    plan = newest_plan(instance, job.key)
    if plan and plan[0] != CLIPS:
        return False
    # A request may ask for a look without `review: true` in `job.yaml`, and its run may fail or its clips become stale.
    run = instance.get_run_by_id(plan[1]) if plan else None
    asked = run is not None and REVIEW in run.tags
    return job.review or asked or (fresh and REVIEW in clips)
