"""The clips that generation reads."""

from typing import Any

import dagster as dg

from wan_orchestration.defs import worker_retries
from wan_orchestration.defs.clips.metadata import placed_metadata, preprocessed_metadata
from wan_orchestration.defs.config import PreprocessConfig
from wan_orchestration.defs.failures import failures_in_words
from wan_orchestration.defs.freshness import CODE_VERSIONS, inputs_tag
from wan_orchestration.defs.jobs.assets import job_inputs
from wan_orchestration.defs.partitions import jobs
from wan_orchestration.defs.resources import JobFolders
from wan_orchestration.defs.weights.assets import weight_snapshot
from wan_orchestration.jobs.clips import Clips, check_clips, place_clips
from wan_orchestration.jobs.folder import Job
from wan_orchestration.launch.launcher import Launcher
from wan_orchestration.protocol.messages import PreprocessRequest
from wan_orchestration.settings.environment import environment
from wan_orchestration.weights import hub


@dg.asset(
    partitions_def=jobs,
    deps=[job_inputs, weight_snapshot],
    group_name="animation",
    kinds={"file"},
    owners=["team:animation"],
    code_version=CODE_VERSIONS["preprocessed_clips"],
)
def preprocessed_clips(
    context: dg.AssetExecutionContext, config: PreprocessConfig, job_folders: JobFolders, launcher: Launcher
) -> dg.MaterializeResult:
    """Pose and face clips, the reference picture and, for replacement, background and mask, in `data/clips/<job>`.

    Copies a job's ready clips after decoding every frame, or makes clips from its driving video and picture. Settings
    come from the launchpad, else from `job.yaml`, else from `WAN_PREPROCESS_*`, else from the defaults.
    """
    from wan_orchestration.quality.clips_quality import quality_of  # noqa: PLC0415 (OpenCV, PyAV: only a run needs them)

    with failures_in_words(context):
        job = job_folders.open(context.partition_key)
        clips, metadata = make_clips(context, launcher, job_folders, job, config.given())
        # Kept beside the clips for their checks, and for the page.
        quality_of(clips)
    return dg.MaterializeResult(
        data_version=dg.DataVersion(clips.version), metadata=metadata, tags=inputs_tag(job_folders.version(job.key))
    )


def make_clips(
    context: dg.AssetExecutionContext, launcher: Launcher, job_folders: JobFolders, job: Job, given: dict[str, Any]
) -> tuple[Clips, dict[str, Any]]:
    """A job's clips in DATA_ROOT/clips/<job>, checked, and their metadata.

    `given` are fields of PreprocessSettings that win over the job's.

    Raises:
        BadInput: the job's inputs or settings cannot be used.
        dg.Failure: anything else went wrong.
    """
    env = environment()
    folder = env.clips_root / job.key
    if job.kind == "clips":
        settings = job.generate_settings(mode=given.get("mode"))
        clips = job_folders.remember(job.key, place_clips(job.folder, folder, settings.mode, settings.refert_num))
        for notice in clips.notices:
            context.log.warning(notice)
        return clips, placed_metadata(clips)
    assert env.models_root is not None
    request = PreprocessRequest(
        job_id=job.key,
        driving=job.inputs["driving"],
        reference=job.inputs["reference"],
        output=folder,
        settings=job.preprocess_settings(**given),
        snapshot=hub.local_snapshot(env),
        models_root=env.models_root,
    )
    result = worker_retries.preprocess(context, launcher, request)
    clips = job_folders.remember(job.key, check_clips(folder, result.mode))
    return clips, preprocessed_metadata(clips, result)
