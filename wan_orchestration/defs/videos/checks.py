"""Checks of a finished video, made in one pass over its frames."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import dagster as dg

from wan_orchestration.defs.partitions import jobs
from wan_orchestration.errors import BadInput
from wan_orchestration.messages import Result
from wan_orchestration.settings import environment

BLANK_DEVIATION = 1.0
"""A frame whose values deviate from their mean by less than this (of 255) shows nothing."""

CHECKS = {
    "decodable": "Every frame of the video can be decoded.",
    "length": "The video has as many frames as the driving clip and lasts as long.",
    "size": "The video is as large as the driving clip.",
    "not_blank": "No frame is of one colour.",
    "finite": "The model computed no NaN or infinity.",
}


@dataclass
class Finding:
    """What one check found."""

    passed: bool
    reason: str = ""
    numbers: dict[str, float] = field(default_factory=dict)


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
    for name, found in inspect(env.videos_root / key, env.clips_root / key / "src_pose.mp4").items():
        yield dg.AssetCheckEvaluation(
            asset_key=VIDEO,
            check_name=name,
            passed=found.passed,
            description=CHECKS[name] if found.passed else found.reason,
            metadata=found.numbers,
            partition=key,
        )


@dg.multi_asset_check(name="video_checks", specs=_specs())
def video_checks(context: dg.AssetCheckExecutionContext) -> Iterator[dg.AssetCheckResult]:
    """Looks at a job's finished video."""
    for found in evaluations(context.partition_key):
        yield dg.AssetCheckResult(
            check_name=found.check_name,
            asset_key=VIDEO,
            passed=found.passed,
            description=found.description,
            metadata=found.metadata,
        )


def inspect(folder: Path, driving: Path) -> dict[str, Finding]:
    """Look at the video in `folder` beside the driving clip; a `Finding` by the name of each check."""
    from wan_orchestration import video  # noqa: PLC0415 (PyAV: only a run needs it)

    expected = video.probe(driving)
    found = {"finite": _finite(folder / "result.json")}
    try:
        info = video.probe(folder / "video.mp4")
        frames, blank, least = 0, [], float("inf")
        for frame in video.iter_frames(info.path):
            deviation = float(frame.std())
            least = min(least, deviation)
            if deviation < BLANK_DEVIATION:
                blank.append(frames)
            frames += 1
    except BadInput as error:
        unknown = {name: Finding(False, "the video cannot be decoded") for name in CHECKS}
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
    try:
        result = Result.model_validate_json(file.read_bytes())
    except (OSError, ValueError) as error:
        return Finding(False, f"{file} cannot be read: {error}")
    return Finding(result.finite is True, "the model computed NaN or infinity; the frames that held them are black")
