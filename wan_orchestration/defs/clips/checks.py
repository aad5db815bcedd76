"""Checks of a job's clips, in one pass over each."""

from collections.abc import Iterator

import dagster as dg

from wan_orchestration.defs import asset_checks
from wan_orchestration.defs.asset_checks import Results, at_least, at_most, quality
from wan_orchestration.defs.resources import JobFolders
from wan_orchestration.errors import validate
from wan_orchestration.jobs.clips import Clips
from wan_orchestration.settings.checks import CheckSettings

CHECKS = {
    "skeleton": "Nearly every frame has a skeleton.",
    "face": "Most frames have a face.",
    "confidence": "The joints that are drawn were found with confidence.",
    "no_jumps": "The skeleton does not jump from one frame to the next.",
    "mask": "No frame has an empty mask (replace mode).",
    "resolution": "The clips are large enough for the model.",
    "rate": "The clips have a usual frame rate.",
    "same_length": "Pose and face clip, background and mask have the same number of frames.",
}

CLIPS = dg.AssetKey("preprocessed_clips")


@dg.multi_asset_check(name="clips_checks", specs=asset_checks.specs(CLIPS, CHECKS))
def clips_checks(context: dg.AssetCheckExecutionContext, job_folders: JobFolders) -> Iterator[dg.AssetCheckResult]:
    """Checks a job's clips."""
    key = context.partition_key
    clips = job_folders.clips(key, job_folders.open(key).generate_settings().mode)
    yield from asset_checks.of_step(CLIPS, inspect(clips), CHECKS)


def evaluations(key: str, clips: Clips) -> Iterator[dg.AssetCheckEvaluation]:
    """Evaluations for clips that another asset's step has made. BadInput as for `inspect`."""
    return asset_checks.of_partition(CLIPS, key, inspect(clips), CHECKS)


def inspect(clips: Clips) -> Results:
    """Measures clips, and compares the measures with the settings. BadInput: a clip cannot be decoded."""
    from wan_orchestration.quality.clips_quality import measure_clips  # noqa: PLC0415 (OpenCV, PyAV: only a run needs them)

    limits, measured, pose = validate(CheckSettings, {}), measure_clips(clips), clips.pose
    lengths = {info.path.name: info.frames for info in clips.videos()}
    jump = "largest movement of the skeleton between two frames, in frame heights"
    if measured.jump_frame is not None:
        jump += f", at frame {measured.jump_frame}"
    ready = "ready clips come without confidences"
    return {
        "skeleton": at_least(round(measured.skeleton, 4), limits.skeleton, "share of frames with a skeleton"),
        "face": at_least(round(measured.face, 4), limits.face, "share of frames with a face"),
        "confidence": at_least(measured.confidence, limits.confidence, "mean confidence of the joints", ready),
        "no_jumps": at_most(measured.largest_jump, limits.jump, jump),
        "mask": at_most(
            measured.empty_masks, limits.empty_masks, "share of frames with an empty mask", "no mask is used"
        ),
        "resolution": at_least(min(pose.width, pose.height), limits.least_side, "shorter side, px"),
        "rate": quality(
            limits.least_fps <= pose.fps <= limits.most_fps,
            f"{float(pose.fps):g} frames per second, expected {limits.least_fps:g} to {limits.most_fps:g}",
            {"fps": float(pose.fps)},
        ),
        "same_length": quality(
            len(set(lengths.values())) == 1,
            ", ".join(f"{name} has {frames} frames" for name, frames in lengths.items()),
            {"frames": pose.frames},
        ),
    }
