"""Generates the segments of one task, on every rank alike; rank 0 keeps them."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor

from wan_orchestration.animate.animator import Animator, ClipInput
from wan_orchestration.animate.colours import Colours, colours_of, matched
from wan_orchestration.animate.device import pick_device, use_tf32
from wan_orchestration.animate.lora import Lora
from wan_orchestration.animate.memory import quantize
from wan_orchestration.animate.memory.placement import ClipShape, Name, Placement, choose, has_seams, placements
from wan_orchestration.animate.memory.room import device_memory, ran_out_of_memory
from wan_orchestration.animate.memory.sizes import sizes
from wan_orchestration.animate.models import Models
from wan_orchestration.animate.parallel.ranks import Ranks
from wan_orchestration.protocol.messages import Task
from wan_orchestration.stopwatch import Phase, Stopwatch, since
from wan_orchestration.video.reader import FrameReader, pingpong
from wan_orchestration.video.stills import read_image
from wan_orchestration.weights.snapshot import Snapshot

OnSegmentStep = Callable[[int, int], None]


@dataclass(frozen=True)
class Plan:
    """What ranks must know of a task. Rank 0 finds it out and announces it."""

    snapshot: Snapshot
    task: Task
    loras: tuple[Lora, ...]
    first: int
    """Segments that an earlier run has finished."""
    count: int
    """Segments of the whole video."""
    colours: Colours | None = None
    """Of the first segment, where an earlier run has finished it and the others are to match it."""
    placement: Name = "resident"


@dataclass(frozen=True)
class Engine:
    """What was chosen for a task: the attention kernel, whether blocks are compiled, where the models lie."""

    attention: str
    placement: Name
    tf32: bool
    compiled: bool = False
    compile_error: str | None = None
    """Why blocks run uncompiled that were to be compiled."""


@dataclass(frozen=True)
class Segment:
    """A finished segment: its new frames and its last refert_num frames.

    `video`: (3, n, H, W) float32 on the device, in [-1, 1]. `guide`: (3, refert_num, H, W) on the CPU, for the next
    segment.
    """

    video: Tensor
    guide: Tensor
    seconds: dict[Phase, float]
    """Since the segment before; those of the first from the beginning."""
    colours: Colours | None = None
    """Of the first segment, where the others are to match it."""


class SegmentMaker:
    """Makes segments on one rank, together with the others, and holds the models from one task to the next."""

    def __init__(self, ranks: Ranks, fsdp: bool = False, cache_root: Path | None = None) -> None:
        self.ranks, self.fsdp, self.cache_root = ranks, fsdp and ranks.size > 1, cache_root
        self.models: Models | None = None
        self._models_how: dict[str, Any] = {}
        self.engine: Engine | None = None
        """How the last segments were made."""
        self.stopwatch = Stopwatch(_synchronize)
        """Of everything that this rank does."""

    def segments(
        self, plan: Plan, guide: np.ndarray | None = None, on_step: OnSegmentStep | None = None
    ) -> Iterator[Segment]:
        """The segments of a task from `plan.first` on.

        Args:
            plan: the task.
            guide: (3, refert_num, H, W) float32 of the last finished segment; wanted on rank 0, and if there is one.
            on_step: called with the segment's index and the number of steps done, first with 0.
        """
        try:
            yield from self._segments(plan, guide, on_step)
        except Exception as error:
            self.recover(error)  # before the other ranks hear of it: what waits for them then goes with the models
            raise

    def _segments(self, plan: Plan, guide: np.ndarray | None, on_step: OnSegmentStep | None) -> Iterator[Segment]:
        settings, clips = plan.task.settings, plan.task.clips
        before = self.stopwatch.read()
        device, _ = pick_device(settings, self.ranks)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        models = self._models_for(plan)
        height, width = clips.pose.height, clips.pose.width
        animator = Animator(
            models, settings, read_image(clips.reference), height, width, plan.loras, plan.count - plan.first
        )
        engine = self.engine = Engine(animator.attention, plan.placement, models.tf32)
        animator.skip(plan.first)
        guiding = self._share_guide(guide, (3, settings.refert_num, height, width)) if plan.first else None
        stride, colours = settings.clip_len - settings.refert_num, plan.colours

        def read(index: int) -> ClipInput:
            length = settings.clip_len
            if settings.trim_last_clip and index == plan.count - 1:
                length = min(length, enough_frames(clips.pose.frames - index * stride))
            return _read_segment(streams, index * stride, length)

        with ExitStack() as stack:
            streams = {
                name: stack.enter_context(FrameReader(info.path))
                for name in ("pose", "face", "background", "mask")
                if (info := getattr(clips, name)) is not None
            }
            ahead = stack.enter_context(ThreadPoolExecutor(1))  # reads a segment's frames while the one before is made
            coming = ahead.submit(read, plan.first)
            for index in range(plan.first, plan.count):
                report = partial(on_step, index) if on_step else _ignore
                report(0)
                conditions = animator.condition(coming.result(), guiding)
                # Only now, so that the inputs of one segment at a time are held.
                coming = ahead.submit(read, index + 1) if index + 1 < plan.count else Future()
                video = animator.animate(conditions, report)
                del conditions
                compilation = animator.compilation
                self.engine = replace(engine, compiled=compilation.compiled, compile_error=compilation.error)
                if settings.color_match == "lab":
                    with self.stopwatch.during("decoding"):
                        colours = colours or colours_of(video)
                        video = matched(video, colours) if index else video
                guiding = video[:, -settings.refert_num :].cpu()
                repeated = settings.refert_num if index else 0
                now = self.stopwatch.read()
                spent, before = since(now, before), now
                yield Segment(
                    video=video[:, repeated : clips.pose.frames - index * stride],
                    guide=guiding,
                    colours=colours,
                    seconds=spent,
                )
                del video  # else it would lie on the device until the next is decoded

    def recover(self, error: Exception) -> None:
        """After a failed task: drop the models if there was no memory, or if they hold connections that are gone."""
        if self.fsdp or ran_out_of_memory(error):
            self.models = None

    def _share_guide(self, guide: np.ndarray | None, shape: tuple[int, ...]) -> Tensor:
        return self.ranks.share(torch.empty(shape) if guide is None else torch.from_numpy(guide))

    def ways(self, plan: Plan, seams: bool = False) -> list[Placement]:
        """How the models may be placed for a task: as the settings say, or the fastest that fits and those after it.

        Finished segments are gone on with where that can be: with `tiled` if they have `seams`, else at first with the
        ways that make none, also where `tiled` alone is expected to fit.
        """
        settings, pose = plan.task.settings, plan.task.clips.pose
        device, dtype = pick_device(settings, self.ranks)
        wanted = "tiled" if settings.placement == "auto" and seams else settings.placement
        if device.type == "cpu":
            return [Placement("resident" if wanted == "auto" or self.fsdp else wanted)]
        shape = ClipShape(pose.height, pose.width, settings.clip_len, guided=settings.guide_scale > 1)
        found = sizes(plan.snapshot, dtype, settings.quantization != "off", getattr(torch, settings.vae_dtype))
        ways = placements(found, shape, self.ranks.size, self.fsdp, keep_text=not settings.offload_model)
        if wanted != "auto":
            return [way for way in ways if way.name == wanted] or ways[:1]
        alike = [way for way in ways if not (plan.first and has_seams(way.name, pose.height, self.ranks.size))]
        return choose(alike, device_memory(device), psutil.virtual_memory().available) + ways[len(alike) :]

    def _models_for(self, plan: Plan) -> Models:
        """The models as a task wants them. BadInput: they cannot be had so on this machine."""
        settings = plan.task.settings
        device, dtype = pick_device(settings, self.ranks)
        tf32 = use_tf32(settings, device, dtype)
        how = {
            "device": device,
            "dtype": dtype,
            "placement": plan.placement,
            "quantization": settings.quantization,
            "vae_dtype": getattr(torch, settings.vae_dtype),
            "tf32": tf32,
        }
        if self.models is None or how != self._models_how:
            quantize.check(settings.quantization, device, self.fsdp)
            self.models = None  # makes room before others are loaded
            self.models = Models(
                snapshot=plan.snapshot,
                ranks=self.ranks,
                fsdp=self.fsdp,
                cache_root=self.cache_root,
                stopwatch=self.stopwatch,
                **how,
            )
            self._models_how = how
        return self.models


def enough_frames(wanted: int) -> int:
    """The least length of a segment, 4n+1 and at least 5, that holds so many frames."""
    return max(5, -(-(wanted - 1) // 4) * 4 + 1)


def _read_segment(streams: dict[str, FrameReader], start: int, length: int) -> ClipInput:
    def read(name: str) -> np.ndarray | None:
        reader = streams.get(name)
        return None if reader is None else reader.read(pingpong(reader.info.frames, start, length))

    pose, face = read("pose"), read("face")
    assert pose is not None
    assert face is not None
    return ClipInput(pose, face, read("background"), read("mask"))


def _ignore(done: int) -> None:
    return


def _synchronize() -> None:
    """Wait for this rank's device, where it is a CUDA device that has been used."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
