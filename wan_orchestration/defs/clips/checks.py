"""Checks of a job's clips, in one pass over each."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import dagster as dg

from wan_orchestration.defs import asset_checks
from wan_orchestration.defs.asset_checks import Results, at_least, at_most, quality
from wan_orchestration.defs.failures import failures_in_words
from wan_orchestration.defs.resources import JobFolders
from wan_orchestration.errors import BadInput, validate
from wan_orchestration.jobs.clips import Clips
from wan_orchestration.jobs.folder import Job
from wan_orchestration.settings.checks import CheckSettings

if TYPE_CHECKING:
    from wan_orchestration.quality.clips_quality import ClipsQuality

CHECKS = {
    "skeleton": "Nearly every frame has a skeleton, or in clips without skeletons a person.",
    "face": "Most frames have a face.",
    "confidence": "The joints that are drawn were found with confidence.",
    "no_jumps": "The skeleton does not jump from one frame to the next.",
    "mask": "No frame has an empty mask (replace mode).",
    "resolution": "The clips are large enough for the model.",
    "rate": "The clips have a usual frame rate.",
    "same_length": "Pose and face clip, background and mask have the same number of frames.",
}

CLIPS = dg.AssetKey("preprocessed_clips")


@dg.definitions
def clips_checks_definitions() -> dg.Definitions:
    specs = asset_checks.specs(CLIPS, CHECKS, blocking=_usually_blocking())
    return dg.Definitions(asset_checks=[dg.multi_asset_check(name="clips_checks", specs=specs)(clips_checks)])


def clips_checks(context: dg.AssetCheckExecutionContext, job_folders: JobFolders) -> Iterator[dg.AssetCheckResult]:
    """Checks a job's clips. The step fails if a check of WAN_CHECK_BLOCK fails that blocks the job."""
    with failures_in_words(context):
        job = job_folders.open(context.partition_key)
        clips, limits = job_folders.clips(job.key, job.generate_settings()), job.check_settings()
        results = inspect(clips, limits)
    usual = _usually_blocking()
    for name in usual - set(limits.block):
        # Dagster would skip the generation although the job's own settings allow it.
        results[name] = results[name]._replace(severity=dg.AssetCheckSeverity.WARN)
    yield from asset_checks.of_step(CLIPS, results, CHECKS)
    # Dagster would fail the step too, but its message only names the checks.
    with failures_in_words(context):
        require(job, clips, limits.model_copy(update={"block": [name for name in limits.block if name in usual]}))


def _usually_blocking() -> set[str]:
    """The checks that block jobs whose `job.yaml` does not say which. BadInput: a bad WAN_CHECK_BLOCK."""
    return set(validate(CheckSettings, {}).block)


def evaluations(job: Job, clips: Clips) -> Iterator[dg.AssetCheckEvaluation]:
    """Evaluations for clips that another asset's step has made. BadInput as for `inspect`."""
    return asset_checks.of_partition(CLIPS, job.key, inspect(clips, job.check_settings()), CHECKS)


def require(job: Job, clips: Clips, limits: CheckSettings) -> None:
    """BadInput: the clips fail a check in `limits.block`, or cannot be decoded."""
    from wan_orchestration.quality.clips_quality import quality_of, why_blocked  # noqa: PLC0415 (OpenCV, PyAV)

    if limits.block and (reason := why_blocked(quality_of(clips), limits, job.kind == "clips")):
        raise BadInput(reason)


def inspect(clips: Clips, limits: CheckSettings) -> Results:
    """Measures clips, and compares the measures with the limits. BadInput: a clip cannot be decoded."""
    from wan_orchestration.quality.clips_quality import quality_of  # noqa: PLC0415 (OpenCV, PyAV: only a run needs them)

    return judge(quality_of(clips), limits)


def judge(measured: "ClipsQuality", limits: CheckSettings) -> Results:
    """Compares the measures of clips with the limits."""
    seen = "a skeleton" if measured.drawn else "a person"
    jump = f"largest movement of the {seen[2:]}{measured.whose('largest_jump')} between two frames, in frame heights"
    if measured.jump_frame is not None:
        jump += f", at frame {measured.jump_frame}"
    nobody = "no estimator looked for a person"
    ready = "ready clips come without confidences" if measured.drawn else nobody
    results = {
        "skeleton": at_least(
            measured.skeleton,
            limits.skeleton,
            f"share of frames with {seen}" + measured.whose("skeleton"),
            nobody,
        ),
        "face": at_least(
            measured.face,
            limits.face,
            "share of frames with a face" + measured.whose("face"),
            "the model family needs no face clip",
        ),
        "confidence": at_least(
            measured.confidence,
            limits.confidence,
            "mean confidence of the joints" + measured.whose("confidence"),
            ready,
        ),
        "no_jumps": at_most(measured.largest_jump, limits.jump, jump, nobody),
        "mask": at_most(
            measured.empty_masks,
            limits.empty_masks,
            "share of frames with an empty mask" + measured.whose("empty_masks"),
            "no mask is used",
        ),
        "resolution": at_least(min(measured.width, measured.height), limits.least_side, "shorter side, px"),
        "rate": quality(
            limits.least_fps <= measured.fps <= limits.most_fps,
            f"{measured.fps:g} frames per second, expected {limits.least_fps:g} to {limits.most_fps:g}",
            {"fps": measured.fps},
        ),
        "same_length": quality(
            len(set(measured.frames.values())) == 1,
            ", ".join(f"{name} has {frames} frames" for name, frames in measured.frames.items()),
            {"frames": next(iter(measured.frames.values()))},
        ),
    }
    return asset_checks.with_severity(results, limits)
