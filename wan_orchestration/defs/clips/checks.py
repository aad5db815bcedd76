"""Checks of a job's clips, in one pass over each."""

import warnings
from collections.abc import Iterator
from pathlib import Path

import dagster as dg

from wan_orchestration.defs import check_results as findings
from wan_orchestration.defs.check_results import Finding, at_least, at_most
from wan_orchestration.defs.partitions import jobs
from wan_orchestration.errors import validate
from wan_orchestration.jobs.clips import check_clips
from wan_orchestration.jobs.folder import Job
from wan_orchestration.settings.environment import environment
from wan_orchestration.settings.service import CheckSettings

CHECKS = {
    "skeleton": "Nearly every frame has a skeleton.",
    "face": "Most frames have a face.",
    "confidence": "The joints that are drawn were found with confidence.",
    "no_jumps": "The skeleton does not jump from one frame to the next.",
    "mask": "The mask is empty in no frame (replace mode).",
    "resolution": "The clips are large enough for the model.",
    "rate": "The clips have a usual number of frames a second.",
    "same_length": "Pose and face clip, background and mask have the same number of frames.",
}

CLIPS = dg.AssetKey("preprocessed_clips")


def _specs() -> list[dg.AssetCheckSpec]:
    with warnings.catch_warnings():
        # As for the video's checks: by partition they are a preview in Dagster.
        warnings.simplefilter("ignore", dg.PreviewWarning)
        return [
            dg.AssetCheckSpec(name, asset=CLIPS, description=text, partitions_def=jobs) for name, text in CHECKS.items()
        ]


@dg.multi_asset_check(name="clips_checks", specs=_specs())
def clips_checks(context: dg.AssetCheckExecutionContext) -> Iterator[dg.AssetCheckResult]:
    """Looks at a job's clips."""
    yield from findings.results(evaluations(Job.open(environment().jobs_root / context.partition_key)))


def evaluations(job: Job) -> Iterator[dg.AssetCheckEvaluation]:
    """What the checks find in a job's clips, where another step has made them. BadInput."""
    found = inspect(environment().clips_root / job.key, job)
    return findings.evaluations(CLIPS, job.key, found, CHECKS)


def inspect(folder: Path, job: Job) -> dict[str, Finding]:
    """Look at a job's clips in `folder`; a `Finding` by the name of each check. BadInput: they cannot be decoded."""
    from wan_orchestration.quality.clips import measure_clips  # noqa: PLC0415 (OpenCV, PyAV: only a run needs them)

    limits, clips = validate(CheckSettings, {}), check_clips(folder, job.generate_settings().mode)
    quality, pose = measure_clips(clips), clips.pose
    lengths = {info.path.name: info.frames for info in clips.videos()}
    jump = "farthest jump of the skeleton, in parts of the height"
    if quality.jump_frame is not None:
        jump += f", at frame {quality.jump_frame}"
    ready = "the clips came ready made"
    return {
        "skeleton": at_least(round(quality.skeleton, 4), limits.skeleton, "share of frames with a skeleton"),
        "face": at_least(round(quality.face, 4), limits.face, "share of frames with a face"),
        "confidence": at_least(quality.confidence, limits.confidence, "mean confidence of the joints", ready),
        "no_jumps": at_most(quality.largest_jump, limits.jump, jump),
        "mask": at_most(
            quality.empty_masks, limits.empty_masks, "share of frames with an empty mask", "no mask is used"
        ),
        "resolution": at_least(min(pose.width, pose.height), limits.least_side, "shorter side, px"),
        "rate": Finding(
            limits.least_fps <= pose.fps <= limits.most_fps,
            f"{float(pose.fps):g} frames a second, expected {limits.least_fps:g} to {limits.most_fps:g}",
            {"fps": float(pose.fps)},
            quality=True,
        ),
        "same_length": Finding(
            len(set(lengths.values())) == 1,
            ", ".join(f"{name} has {frames} frames" for name, frames in lengths.items()),
            {"frames": pose.frames},
            quality=True,
        ),
    }
