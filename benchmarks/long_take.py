"""What `color_match` and `retakes` do to a long video: drift, seams, and PSNR to the drawn truth by segment.

    OMP_NUM_THREADS=1 uv run python benchmarks/long_take.py --json long_take.json
    OMP_NUM_THREADS=1 uv run python benchmarks/long_take.py --clip-len 93 --cases "tint, auto"    # 60 s at 30 a second

Uses the demo's mini model (`mini/README.md`) on a held-out figure in animate mode. Without --clip-len, segments are as
long as those it was trained on. Faults are made on purpose: `tint` is a decoder that tints each segment a little
more than the one before; `noise` is one segment with noise in all frames.

Prints a Markdown table. PSNR is against the drawn truth. Skin, background and drift are differences of mean colours
(CIE 1976): from the truth, and from the first segment. The seam is that of `result.json`.
"""

import argparse
import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

import cv2
import numpy as np
import torch
from torch import Tensor

from mini import measure
from mini.figures import Look
from mini.jobs import write_clips
from mini.samples import CLIP_LEN
from mini.scene import Scene, scene
from mini.train import HELD_OUT
from wan_orchestration.engine.vae.model import AnimateVae
from wan_orchestration.families.animate.animator import Animator
from wan_orchestration.families.animate.transformer import AnimateTransformer
from wan_orchestration.generate.runner import run
from wan_orchestration.infer import TerminalReporter
from wan_orchestration.jobs.clips import check_clips
from wan_orchestration.protocol.messages import Request, Result, Task
from wan_orchestration.settings.generate import GenerateSettings
from wan_orchestration.video.reader import FrameReader
from wan_orchestration.weights.snapshot import open_snapshot

GAIN, OFFSET = (0.005, 0.0, -0.005), (0.002, 0.0, -0.002)
"""By how much the tint of `tint` grows with each segment, of red, green and blue in [-1, 1]."""
NOISE, NOISY_SEGMENT = 0.3, 5
"""Standard deviation of the noise of `noise` in [-1, 1], and the index of its segment."""
NEAR = 40.0
"""A pixel of the truth belongs to a colour of the figure if it differs by less than this (of 255, Euclidean)."""
EVERY = 4
"""Skin and background are compared in one of this many frames."""

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    f"{fault}, {name}": (fault, settings)
    for fault, several in {
        "none": {"off": {}, "lab": {"color_match": "lab"}, "auto": {"color_match": "auto"}},
        "tint": {
            "off": {},
            "lab": {"color_match": "lab"},
            "auto": {"color_match": "auto"},
        },
        "noise": {
            "off": {},
            "lab": {"color_match": "lab"},
            "auto": {"color_match": "auto"},
            "off, retakes 2": {"retakes": 2},
            "auto, retakes 2": {"color_match": "auto", "retakes": 2},
        },
    }.items()
    for name, settings in several.items()
} | {"tint, off, retakes 2": ("tint", {"retakes": 2})}
"""Fault and settings by name."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint-dir", type=Path, default=Path("data/models/wan-animate-mini"))
    parser.add_argument("--segments", type=int, default=20)
    parser.add_argument("--clip-len", type=int, default=CLIP_LEN)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--figure", type=int, default=1, help="number of the held-out figure")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--json", type=Path, help="also write the figures here, with those of each segment")
    arguments = parser.parse_args()
    whole = scene(HELD_OUT + arguments.figure, 1 + arguments.segments * (arguments.clip_len - 1))
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch, remembering():
        clips = write_clips(Path(scratch) / "job", whole)
        for name in arguments.cases:
            fault, fields = CASES[name]
            settings = GenerateSettings(clip_len=arguments.clip_len, sampling_steps=arguments.steps, **fields)
            result = make(Path(scratch), clips, arguments.checkpoint_dir, settings, fault)
            found[name] = compare(result, whole, settings)
            print(name, found[name]["mean"], flush=True)
            if arguments.json:
                arguments.json.write_text(json.dumps(found, indent=2))
    print(table(found))


def make(scratch: Path, clips: Path, snapshot: Path, settings: GenerateSettings, fault: str) -> Result:
    """Generate the video with a fault."""
    task = Task(
        job_id="long",
        clips=check_clips(clips, "animate"),
        output=scratch / "video",
        settings=settings,
        created_at=datetime.now(UTC),
    )
    opened = open_snapshot(snapshot)
    with FAULTS[fault]():
        (result,) = run([(Request(snapshot=opened.path, tasks=[task]), TerminalReporter())])
    if result.status != "succeeded":
        raise SystemExit(result.error)
    return result


@contextmanager
def remembering() -> Iterator[None]:
    """All cases have the same pose and face clips: encode each segment of them once."""
    known: dict[str, Tensor] = {}

    def remembered(whole: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def encode(self: Any, values: Any, *others: Any, **options: Any) -> Tensor:
            content = np.asarray(values).tobytes() + repr(options).encode()
            key = whole.__qualname__ + hashlib.sha256(content).hexdigest()
            if key not in known:
                known[key] = whole(self, values, *others, **options)
            return known[key].clone()

        return encode

    with (
        patch.object(AnimateVae, "encode_video", remembered(AnimateVae.encode_video)),
        patch.object(AnimateTransformer, "encode_face", remembered(AnimateTransformer.encode_face)),
    ):
        yield


@contextmanager
def no_fault() -> Iterator[None]:
    yield


@contextmanager
def tinted() -> Iterator[None]:
    """The decoder tints every frame, more from segment to segment."""
    condition, decode, begun = Animator.condition, AnimateVae.decode_video, []

    def count(self: Animator, *arguments: Any) -> Any:
        begun.append(1)
        return condition(self, *arguments)

    def tint(self: AnimateVae, latents: Tensor) -> Tensor:
        video = decode(self, latents)
        gain, offset = (torch.tensor(values).view(3, 1, 1, 1).to(video) for values in (GAIN, OFFSET))
        return (video + (len(begun) - 1) * (video * gain + offset)).clamp(-1, 1)

    with patch.object(Animator, "condition", count), patch.object(AnimateVae, "decode_video", tint):
        yield


@contextmanager
def noisy() -> Iterator[None]:
    """The first take of one segment has noise in all frames."""
    animate, made = Animator.animate, []

    def spoil(self: Animator, *arguments: Any) -> Tensor:
        video = animate(self, *arguments)
        made.append(arguments)
        if len(made) != NOISY_SEGMENT + 1:
            return video
        noise = torch.randn(video.shape, generator=torch.Generator().manual_seed(0)).to(video)
        return (video + NOISE * noise).clamp(-1, 1)

    with patch.object(Animator, "animate", spoil):
        yield


FAULTS = {"none": no_fault, "tint": tinted, "noise": noisy}


def compare(result: Result, whole: Scene, settings: GenerateSettings) -> dict[str, Any]:
    """Figures of a video by segment, and their means."""
    assert result.video_path and result.quality
    rows, start = [], 0
    with FrameReader(result.video_path) as reader:
        for segment in result.made_segments:
            frames = range(start, start + segment.frames)
            made, truth = reader.read(frames), np.stack([whole.truth(t) for t in frames])
            rows.append({"psnr": measure.psnr(made, truth), **colour_errors(made, truth, whole.character)})
            start += segment.frames
    drift = result.quality.colour_drift
    for row, segment, distance in zip(rows, result.made_segments, drift):
        measures = segment.kept.measures if segment.kept else None
        row |= {"drift": distance, "seam": measures and measures.seam, "takes": len(segment.takes)}
    last = rows[-max(len(rows) // 4, 1) :]
    mean = {
        "psnr": np.mean([row["psnr"] for row in rows]),
        "worst psnr": min(row["psnr"] for row in rows),
        "psnr, last quarter": np.mean([row["psnr"] for row in last]),
        "skin, last quarter": np.mean([row["skin"] for row in last]),
        "background, last quarter": np.mean([row["background"] for row in last]),
        "drift": max(drift),
        "seam": result.quality.seam,
        "retakes": sum(row["takes"] - 1 for row in rows),
        "seconds": result.seconds.total,
    }
    return {
        "settings": settings.model_dump(include={"color_match", "retakes", "clip_len", "sampling_steps"}),
        "mean": {name: round(float(value), 2) for name, value in mean.items()},
        "segments": rows,
    }


def colour_errors(made: np.ndarray, truth: np.ndarray, look: Look) -> dict[str, float]:
    """CIE 1976 difference of the mean colours that skin and background have in two videos (T, H, W, 3) uint8."""
    errors = {}
    labs = [
        np.stack([cv2.cvtColor(frame.astype(np.float32) / 255, cv2.COLOR_RGB2LAB) for frame in frames[::EVERY]])
        for frames in (made, truth)
    ]
    pixels = truth[::EVERY].astype(np.float32)
    for name, colours in {"skin": (look.skin,), "background": (look.wall, look.floor)}.items():
        there = np.min([np.linalg.norm(pixels - colour, axis=-1) for colour in np.float32(colours)], axis=0) < NEAR
        errors[name] = float(np.linalg.norm(labs[0][there].mean(axis=0) - labs[1][there].mean(axis=0)))
    return errors


def table(found: dict[str, Any]) -> str:
    """The means as Markdown."""
    names = ["psnr", "psnr, last quarter", "worst psnr", "skin, last quarter", "background, last quarter", "drift"]
    names += ["seam", "retakes"]
    heads = [
        "fault, settings",
        "PSNR, dB",
        "last quarter",
        "worst segment",
        "skin, last quarter",
        "background",
        "drift",
    ]
    heads += ["seam", "retakes"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for case, figures in found.items():
        lines.append("| " + " | ".join([case, *(f"{figures['mean'][name]:g}" for name in names)]) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
