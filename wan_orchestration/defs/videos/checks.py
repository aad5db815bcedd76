"""Checks of a finished video: of its integrity by decoding it, of its quality by the runner's measures."""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg

from wan_orchestration.defs import asset_checks
from wan_orchestration.defs.asset_checks import Results, at_least, at_most, integrity, quality
from wan_orchestration.defs.resources import JobFolders
from wan_orchestration.errors import BadInput, validate
from wan_orchestration.jobs.folder import Job
from wan_orchestration.protocol.messages import Result
from wan_orchestration.settings.checks import BLANK_DEVIATION, CheckSettings
from wan_orchestration.settings.environment import environment
from wan_orchestration.video.info import VideoInfo

CHECKS = {
    "decodable": "Every frame of the video can be decoded.",
    "length": "The video has as many frames as the pose clip and lasts as long.",
    "size": "The video is as large as the pose clip.",
    "not_blank": "No frame shows a single colour.",
    "finite": "The model computed no NaN or infinity.",
    "not_frozen": "The picture does not stand still while the pose moves.",
    "colour_drift": "No segment's colours are far from the first segment's.",
    "seams": "Where two segments meet, the picture jumps no more than inside segments.",
    "pose": "The pose found in the video is the pose that drove it (OKS).",
    "identity": "The person is like the reference picture (CLIP).",
}

MEASURED = ("not_frozen", "colour_drift", "seams", "pose", "identity")
"""The checks of what the runner measured."""

VIDEO = dg.AssetKey("generated_video")


@dg.multi_asset_check(name="video_checks", specs=asset_checks.specs(VIDEO, CHECKS))
def video_checks(context: dg.AssetCheckExecutionContext, job_folders: JobFolders) -> Iterator[dg.AssetCheckResult]:
    """Checks a job's finished video again. `generated_video` checks each video once when it is finished."""
    key = context.partition_key
    folder = environment().videos_root / key
    result = Result.read(folder / "result.json")
    settings = result.settings if result and result.settings else job_folders.open(key).generate_settings()
    try:
        limits = job_folders.open(key).check_settings()
    except BadInput:  # the job's folder is gone
        limits = validate(CheckSettings, {})
    results = inspect(folder / "video.mp4", job_folders.clips(key, settings).driving) | judge(result, limits)
    yield from asset_checks.of_step(VIDEO, results, CHECKS)


def evaluations(job: Job, pose: VideoInfo, result: Result) -> Iterator[dg.AssetCheckEvaluation]:
    """The checks of a video that was just made. `pose` is the pose clip."""
    video = environment().videos_root / job.key / "video.mp4"
    results = inspect(video, pose) | judge(result, job.check_settings())
    return asset_checks.of_partition(VIDEO, job.key, results, CHECKS)


def judge(result: Result | None, limits: CheckSettings) -> Results:
    """Compares the measures in a result with the limits."""
    measured = result and result.quality
    finite = integrity(
        result is not None and result.finite is True,
        "result.json is missing or cannot be read"
        if result is None
        else "the model computed NaN or infinity; the frames that held them are black",
    )
    if result is None or measured is None:
        unknown = {name: quality(True, "not measured: see the run's log") for name in MEASURED}
        return {"finite": finite} | asset_checks.with_severity(unknown, limits)
    frozen, reasons = measured.frozen_frames / (result.fps or 1), measured.not_measured
    seam = "largest change between two segments, against those inside segments"
    if measured.seam_frame is not None:
        seam += f", at frame {measured.seam_frame}"
    results = {
        "not_frozen": at_most(round(frozen, 3), limits.frozen_seconds, "seconds that stand still while the pose moves"),
        "colour_drift": at_most(
            max(measured.colour_drift, default=0.0),
            limits.colour_drift,
            "largest distance of a segment's colours from the first segment's",
        ),
        "seams": at_most(measured.seam, limits.seam, seam),
        "pose": at_least(
            measured.pose_similarity,
            limits.pose,
            "similarity of the pose found to the pose wanted",
            reasons.get("pose_similarity", ""),
        ),
        "identity": at_least(
            measured.identity, limits.identity, "likeness of the person and the picture", reasons.get("identity", "")
        ),
    }
    return {"finite": finite} | asset_checks.with_severity(results, limits)


def inspect(file: Path, pose: VideoInfo) -> Results:
    """Decodes a video and compares it with the pose clip."""
    from wan_orchestration.video.reader import iter_frames, probe  # noqa: PLC0415 (PyAV: only a run needs it)

    try:
        info = probe(file)
        frames, blank, least = 0, [], float("inf")
        for frame in iter_frames(file):
            deviation = float(frame.std())
            least = min(least, deviation)
            if deviation < BLANK_DEVIATION:
                blank.append(frames)
            frames += 1
    except BadInput as error:
        unknown = {name: integrity(False, "the video cannot be decoded") for name in ("length", "size", "not_blank")}
        return unknown | {"decodable": integrity(False, str(error))}
    off = abs(info.duration - pose.duration)
    return {
        "decodable": integrity(
            frames == info.frames,
            f"{frames} of {info.frames} frames could be decoded",
            {"frames_decoded": frames},
        ),
        "length": integrity(
            frames == pose.frames and off <= 1 / float(pose.fps),
            f"{frames} frames in {info.duration:.3f} s; the pose clip has {pose.frames} in {pose.duration:.3f} s",
            {"frames": frames, "driving_frames": pose.frames, "duration_difference": round(off, 4)},
        ),
        "size": integrity(
            (info.width, info.height) == (pose.width, pose.height),
            f"{info.width}x{info.height}; the pose clip is {pose.width}x{pose.height}",
            {"width": info.width, "height": info.height},
        ),
        "not_blank": integrity(
            not blank,
            f"{len(blank)} of {frames} frames show one colour, the first is frame {blank[0] if blank else ''}",
            {"blank_frames": len(blank), "least_deviation": round(least, 2)},
        ),
    }
