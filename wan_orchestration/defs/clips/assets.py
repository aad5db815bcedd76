"""The clips that generation reads."""

from typing import Any

import dagster as dg

from wan_orchestration.defs import worker_retries
from wan_orchestration.defs.clips import checks
from wan_orchestration.defs.clips.metadata import placed_metadata, preprocessed_metadata
from wan_orchestration.defs.config import PreprocessConfig
from wan_orchestration.defs.failures import failures_in_words
from wan_orchestration.defs.freshness import CODE_VERSIONS, inputs_tag, latest
from wan_orchestration.defs.jobs.assets import job_inputs
from wan_orchestration.defs.jobs.review import REVIEW, mark_ready
from wan_orchestration.defs.jobs.run_requests import make_clips as make_clips_job
from wan_orchestration.defs.jobs.run_requests import makes_only_clips
from wan_orchestration.defs.partitions import jobs
from wan_orchestration.defs.resources import JobFolders
from wan_orchestration.defs.weights.assets import weight_snapshot
from wan_orchestration.files import remove
from wan_orchestration.jobs.clips import Clips, check_clips, place_clips
from wan_orchestration.jobs.folder import Job
from wan_orchestration.launch.launcher import Launcher
from wan_orchestration.protocol.messages import CharacterRequest, PreprocessRequest
from wan_orchestration.settings.environment import environment
from wan_orchestration.settings.preprocess import PREVIEW_SECONDS, PreprocessSettings
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

    A run that makes only clips makes a preview of the first two seconds before, in `data/clips-preview/<job>`.
    """
    from wan_orchestration.quality.clips_quality import quality_of  # noqa: PLC0415 (OpenCV, PyAV: only a run needs them)

    only_clips = makes_only_clips(context.run)
    with failures_in_words(context):
        job = job_folders.open(context.partition_key)
        clips, metadata = make_clips(context, launcher, job_folders, job, config.given(), preview=only_clips)
        # Kept beside the clips for their checks, and for the page.
        quality_of(clips)
        if context.run.job_name == make_clips_job.name:
            report_checks(context, job, clips)
    review = context.run.tags.get(REVIEW)
    if only_clips:
        mark_ready(context.instance, context.run)
        # Clips that are made again in the UI are to be looked at as those before.
        last = latest(context.instance, "preprocessed_clips", job.key)
        review = review or (last and last.tags.get(REVIEW))
    return dg.MaterializeResult(
        data_version=dg.DataVersion(clips.version),
        metadata=metadata,
        tags=inputs_tag(job_folders.version(job.key)) | ({REVIEW: review} if review else {}),
    )


def report_checks(context: dg.AssetExecutionContext, job: Job, clips: Clips) -> None:
    """Checks clips in a run that has not selected their checks. BadInput: a clip cannot be decoded."""
    for evaluation in checks.evaluations(job, clips):
        # Not yielded, because a step may only yield what its run has selected. Reported under the run's id, because
        # Dagster keeps one evaluation of a check for each run.
        event = dg.DagsterEvent(
            dg.DagsterEventType.ASSET_CHECK_EVALUATION.value, context.run.job_name, event_specific_data=evaluation
        )
        context.instance.report_dagster_event(event, context.run.run_id)


def make_clips(
    context: dg.AssetExecutionContext,
    launcher: Launcher,
    job_folders: JobFolders,
    job: Job,
    given: dict[str, Any],
    preview: bool = False,
) -> tuple[Clips, dict[str, Any]]:
    """A job's clips in DATA_ROOT/clips/<job>, checked, and their metadata.

    `given` are fields of PreprocessSettings that win over the job's. `preview`: whether somebody waits to look at the
    clips, and gets those of the first seconds first, unless the clips are short.

    Raises:
        BadInput: the job's inputs or settings cannot be used.
        dg.Failure: anything else went wrong.
    """
    env = environment()
    folder = env.clips_root / job.key
    if job.kind == "clips":
        settings = job.generate_settings(model=given.get("model"), mode=given.get("mode"))
        clips = job_folders.remember(job.key, place_clips(job.folder, folder, settings.mode, settings.refert_num))
        for notice in clips.notices:
            context.log.warning(notice)
        return clips, placed_metadata(clips)
    assert env.models_root is not None
    settings, preview_folder = job.preprocess_settings(**given), env.previews_root / job.key
    remove(preview_folder)
    request = PreprocessRequest(
        job_id=job.key,
        driving=job.inputs["driving"],
        reference=job.inputs["reference"],
        output=folder,
        preview=preview_folder if preview and _is_long(job, settings) else None,
        settings=settings,
        others=[CharacterRequest(reference=picture, settings=one) for picture, one in job.other_characters(**given)],
        snapshot=hub.local_snapshot(env),
        models_root=env.models_root,
    )
    try:
        result = worker_retries.preprocess(context, launcher, request)
    finally:
        remove(preview_folder)
    clips = job_folders.remember(job.key, check_clips(folder, result.mode, model=settings.model))
    return clips, preprocessed_metadata(clips, result)


def _is_long(job: Job, settings: PreprocessSettings) -> bool:
    """Whether the clips are so much longer than a preview that one is worth its time. BadInput: a damaged video."""
    from wan_orchestration.video.reader import probe  # noqa: PLC0415 (PyAV: only a run needs it)

    duration = probe(job.inputs["driving"]).duration
    return min(settings.end or duration, duration) - settings.start > 1.5 * PREVIEW_SECONDS
