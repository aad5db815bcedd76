"""What it costs to measure a segment as soon as it is decoded, and to correct its colours."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from gpu_parts.record import Record, Work
from gpu_parts.sizes import models, shape, timed
from wan_orchestration.engine.colours import continued
from wan_orchestration.engine.conditioning import to_frames
from wan_orchestration.errors import BadInput
from wan_orchestration.jobs.clips import check_clips
from wan_orchestration.preprocess.estimators.base import Estimator
from wan_orchestration.preprocess.networks import Networks
from wan_orchestration.quality.likeness import Likeness
from wan_orchestration.quality.pose import followed, local_estimator
from wan_orchestration.quality.segment_quality import LIKENESS_FRAMES, SLOW_POSE_FRAMES, SegmentMeter

SEGMENT_SECONDS = {"480p": 60.8, "720p": 233.0}
"""Seconds of a segment with 20 steps, measured on an H100 at 480p and on an H200 at 720p."""
SHARE = 0.03
"""The most that measuring may take of it."""


def measuring(work: Work, record: Record) -> None:
    """The parts of measuring a segment. A job with `retakes` waits for them."""
    encoder = models(work).image_encoder()
    torch.nn.Module.to(encoder, torch.device("cpu"))
    estimator = _estimator(work, record)
    for size in SEGMENT_SECONDS:
        _Segment(work, record, size).measure(encoder, estimator)


class _Segment:
    """A segment of noise, and the clips of a job of this size."""

    def __init__(self, work: Work, record: Record, size: str) -> None:
        from long_video import draw_job

        self.work, self.record, self.size = work, record, size
        segment, self.device = shape(work, size), torch.device(work.device)
        self.clips = check_clips(
            draw_job(work.scratch / f"job-{size}", segment.frames, segment.height, segment.width), "animate"
        )
        self.video = torch.rand(3, segment.frames, segment.height, segment.width, device=self.device) * 2 - 1
        self.frames = to_frames(self.video)

    def measure(self, encoder: Any, estimator: Estimator | None) -> None:
        video, frames = self.video, self.frames
        some = list(frames[:LIKENESS_FRAMES])
        copied = self.row(
            "finite, and the copy to the host", lambda: (bool(torch.isfinite(video).all()), to_frames(video))
        )
        looked = self.row(
            "frames", partial(SegmentMeter(self.clips, _no_estimator, None).measure, frames, 0, True, None, [])
        )
        compared = self.row(f"identity in {LIKENESS_FRAMES} frames", Likeness(encoder, self.device, frames[0]), some)
        posed_seconds = 0.0
        if estimator:
            joints = np.random.default_rng(0).uniform(0, 99, (SLOW_POSE_FRAMES, 20, 3))
            posed = dict(enumerate(frames[:SLOW_POSE_FRAMES]))
            posed_seconds = self.row(
                f"pose in {SLOW_POSE_FRAMES} frames (ViTPose, CPU)", followed, posed, joints, estimator
            )
        limit, seconds = SHARE * SEGMENT_SECONDS[self.size], SEGMENT_SECONDS[self.size]
        spent = copied + max(looked + compared, posed_seconds)  # the pose is found beside the others
        figures = {"again, s": spent, "share": f"{spent / seconds:.1%}"}
        met = None if self.work.tiny else spent <= limit
        self.record.row(f"{self.size}, all of these", figures, f"<= {SHARE:.0%}, {limit:.1f} s", met)
        guide = video[:, -1:].cpu() * 0.9
        self.row("color_match: auto, if it acts", lambda: continued(video, guide))
        if self.device.type == "cuda":
            cpu = Likeness(encoder, torch.device("cpu"), frames[0])
            self.row("identity on the CPU, beside the next segment", cpu, some)

    def row(self, what: str, call: Callable[..., object], *arguments: Any) -> float:
        """Record a call's seconds, and return those of the second time; 0 if it fails."""
        try:
            first, again = (timed(self.work, partial(call, *arguments)) for _ in range(2))
        except Exception as error:
            self.record.cannot(f"{self.size}, {what}", error)
            return 0.0
        self.record.row(f"{self.size}, {what}", {"first, s": first, "again, s": again})
        return again


def _estimator(work: Work, record: Record) -> Estimator | None:
    """ViTPose with random weights, which sees the same person in every frame."""
    try:
        from preprocess_networks import BLOCKS, write_networks

        folder = work.scratch / "estimator"
        box, cells = (200.0, 60.0, 440.0, 600.0), np.random.default_rng(0).uniform(8, 40, (133, 2))
        write_networks(folder, box, cells, 2 if work.tiny else BLOCKS)
        return local_estimator(folder, work.scratch, Networks())
    except Exception as error:
        record.cannot("pose", error)
        return None


def _no_estimator() -> Estimator:
    raise BadInput("measured by itself")
