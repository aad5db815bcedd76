"""The code location as it is, but the first job of a run says which of two snapshots it uses.

a-*  WAN_CHECKPOINT_DIR
b-*  SECOND_SNAPSHOT in its place, as if another service with its own environment had started the run: a launch that
     was started with the first snapshot cannot be taken over
c-*  SECOND_SNAPSHOT too, but in the same environment: a launch changes its models

With FAST_STEP_SECONDS, launches start `fast_worker`.
"""

import os
from pathlib import Path

from wan_orchestration.definitions import definitions  # noqa: F401
from wan_orchestration.defs import resources
from wan_orchestration.defs.jobs.run_requests import RANGE_START
from wan_orchestration.launch import torchrun
from wan_orchestration.settings.environment import environment
from wan_orchestration.weights import hub
from wan_orchestration.weights.snapshot import open_snapshot

SECOND = Path(os.environ["SECOND_SNAPSHOT"])
if os.environ["FAST_STEP_SECONDS"]:
    torchrun.WORKER = "fast_worker"
observe_jobs = resources.JobFolders.setup_for_execution


def setup_for_execution(self, context):
    tags = context.run.tags if context.run else {}
    kind = tags.get("dagster/partition", tags.get(RANGE_START, "a"))[0]
    if kind == "b":
        os.environ["WAN_CHECKPOINT_DIR"] = str(SECOND)
        environment.cache_clear()
    elif kind == "c":
        hub.resolve = lambda env, *args, **kwargs: open_snapshot(SECOND)
        hub.local_snapshot = lambda env: SECOND
    observe_jobs(self, context)


resources.JobFolders.setup_for_execution = setup_for_execution
