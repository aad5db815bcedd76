"""The clips that generation reads."""

import dagster as dg

from wan_orchestration.defs.clips.making import make_clips
from wan_orchestration.defs.config import PreprocessConfig
from wan_orchestration.defs.failures import failures_in_words
from wan_orchestration.defs.jobs.assets import job_inputs, versions
from wan_orchestration.defs.partitions import jobs
from wan_orchestration.defs.provenance import inputs_tag
from wan_orchestration.defs.resources import JobFolders
from wan_orchestration.defs.weights.assets import weight_snapshot
from wan_orchestration.launch.launcher import Launcher

CODE_VERSION = "2"


@dg.asset(
    partitions_def=jobs,
    deps=[job_inputs, weight_snapshot],
    group_name="animation",
    kinds={"file"},
    owners=["team:animation"],
    code_version=CODE_VERSION,
)
def preprocessed_clips(
    context: dg.AssetExecutionContext, config: PreprocessConfig, job_folders: JobFolders, launcher: Launcher
) -> dg.MaterializeResult:
    """Pose and face clips, the reference picture and, for replacement, background and mask, in `data/clips/<job>`.

    A job's ready clips are checked frame by frame and placed. Clips are made from a driving video and a picture.
    Settings come from the launchpad, else from `job.yaml`, else from `WAN_PREPROCESS_*`, else from the defaults.
    """
    with failures_in_words(context):
        job = job_folders.open(context.partition_key)
        inputs = versions(job)["job_inputs"]
        made = make_clips(context, launcher, job, config.given())
    return dg.MaterializeResult(
        data_version=dg.DataVersion(made.version), metadata=made.metadata, tags=inputs_tag(inputs)
    )
