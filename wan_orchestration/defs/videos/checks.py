"""Checks of a finished video: of its integrity in a pass over its frames, of its quality by what was measured."""

import warnings
from collections.abc import Iterator
from pathlib import Path

import dagster as dg

from wan_orchestration.defs import check_results as findings
from wan_orchestration.defs.check_results import Finding, at_least, at_most
from wan_orchestration.defs.partitions import jobs
from wan_orchestration.errors import BadInput, validate
from wan_orchestration.protocol.messages import Result
from wan_orchestration.settings.environment import environment
from wan_orchestration.settings.service import CheckSettings

BLANK_DEVIATION = 1.0
"""A frame whose values deviate from their mean by less than this (of 255) shows nothing."""

CHECKS = {
    "decodable": "Every frame of the video can be decoded.",
    "length": "The video has as many frames as the driving clip and lasts as long.",
    "size": "The video is as large as the driving clip.",
    "not_blank": "No frame is of one colour.",
    "finite": "The model computed no NaN or infinity.",
    "not_frozen": "The picture does not stand still while the pose moves.",
    "colour_drift": "The colours of no clip are far from the first clip's.",
    "seams": "Where two clips meet, the picture jumps no more than inside clips.",
    "pose": "The pose found in the video is the pose that drove it (OKS).",
    "identity": "The person is like the reference picture (CLIP).",
}


VIDEO = dg.AssetKey("generated_video")


def _specs() -> list[dg.AssetCheckSpec]:
    with warnings.catch_warnings():
        # Checks by partition are a preview in Dagster. Without them only the job that was looked at last has any.
        warnings.simplefilter("ignore", dg.PreviewWarning)
        return [
            dg.AssetCheckSpec(name, asset=VIDEO, description=text, partitions_def=jobs) for name, text in CHECKS.items()
        ]


def evaluations(key: str) -> Iterator[dg.AssetCheckEvaluation]:
    """What the checks find in one job's video, for a run over several."""
    env = environment()
    folder = env.videos_root / key
    found = inspect(folder, env.clips_root / key / "src_pose.mp4") | judge(_read(folder / "result.json"))
    return findings.evaluations(VIDEO, key, found, CHECKS)


@dg.multi_asset_check(name="video_checks", specs=_specs())
def video_checks(context: dg.AssetCheckExecutionContext) -> Iterator[dg.AssetCheckResult]:
    """Looks at a job's finished video again. A run that makes videos looks at each itself, as it is finished."""
    yield from findings.results(evaluations(context.partition_key))


def judge(result: Result | None) -> dict[str, Finding]:
    """What the numbers that were measured as the video was finished say; a `Finding` by the name of each check."""
    limits, quality = validate(CheckSettings, {}), result and result.quality
    if result is None or quality is None:
        names = ("not_frozen", "colour_drift", "seams", "pose", "identity")
        return {name: Finding(True, "not measured: see the run's log", quality=True) for name in names}
    frozen = quality.frozen_frames / (result.fps or 1)
    drift, why = max(quality.colour_drift, default=0.0), quality.not_measured
    seam = "largest change between two clips, against those inside clips"
    if quality.seam_frame is not None:
        seam += f", at frame {quality.seam_frame}"
    return {
        "not_frozen": at_most(round(frozen, 3), limits.frozen_seconds, "seconds that stand still while the pose moves"),
        "colour_drift": at_most(drift, limits.colour_drift, "farthest colours of a clip from the first clip's"),
        "seams": at_most(quality.seam, limits.seam, seam),
        "pose": at_least(
            quality.pose_similarity,
            limits.pose,
            "similarity of the pose found to the pose wanted",
            why.get("pose_similarity", ""),
        ),
        "identity": at_least(
            quality.identity, limits.identity, "likeness of the person and the picture", why.get("identity", "")
        ),
    }


def inspect(folder: Path, driving: Path) -> dict[str, Finding]:
    """Look at the video in `folder` beside the driving clip; a `Finding` by the name of each check."""
    from wan_orchestration.video.reader import iter_frames, probe  # noqa: PLC0415 (PyAV: only a run needs it)

    expected = probe(driving)
    found = {"finite": _finite(folder / "result.json")}
    try:
        info = probe(folder / "video.mp4")
        frames, blank, least = 0, [], float("inf")
        for frame in iter_frames(info.path):
            deviation = float(frame.std())
            least = min(least, deviation)
            if deviation < BLANK_DEVIATION:
                blank.append(frames)
            frames += 1
    except BadInput as error:
        unknown = {name: Finding(False, "the video cannot be decoded") for name in ("length", "size", "not_blank")}
        return unknown | {"decodable": Finding(False, str(error))} | found
    off = abs(info.duration - expected.duration)
    return found | {
        "decodable": Finding(
            frames == info.frames,
            f"{frames} of {info.frames} frames could be decoded",
            {"frames_decoded": frames},
        ),
        "length": Finding(
            frames == expected.frames and off <= 1 / float(expected.fps),
            f"{frames} frames in {info.duration:.3f} s; the driving clip has {expected.frames} "
            f"in {expected.duration:.3f} s",
            {"frames": frames, "driving_frames": expected.frames, "duration_difference": round(off, 4)},
        ),
        "size": Finding(
            (info.width, info.height) == (expected.width, expected.height),
            f"{info.width}x{info.height}; the driving clip is {expected.width}x{expected.height}",
            {"width": info.width, "height": info.height},
        ),
        "not_blank": Finding(
            not blank,
            f"{len(blank)} of {frames} frames show one colour, the first is frame {blank[0] if blank else ''}",
            {"blank_frames": len(blank), "least_deviation": round(least, 2)},
        ),
    }


def _finite(file: Path) -> Finding:
    result = _read(file)
    if result is None:
        return Finding(False, f"{file} is missing or cannot be read")
    return Finding(result.finite is True, "the model computed NaN or infinity; the frames that held them are black")


def _read(file: Path) -> Result | None:
    try:
        return Result.model_validate_json(file.read_bytes())
    except (OSError, ValueError):
        return None
