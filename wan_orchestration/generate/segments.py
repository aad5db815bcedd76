"""Generates the segments of a task. Every rank does the same; only rank 0 keeps the segments."""

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wan_orchestration.engine.animator import Animator
from wan_orchestration.engine.colours import Colours, colours_of, continued, matched
from wan_orchestration.engine.device import pick_device, use_tf32
from wan_orchestration.engine.lora import Lora
from wan_orchestration.engine.memory import quantize
from wan_orchestration.engine.memory.capacity import ran_out_of_memory
from wan_orchestration.engine.memory.placement import Name
from wan_orchestration.engine.models import Models
from wan_orchestration.engine.parallel.ranks import Ranks
from wan_orchestration.errors import Cancelled
from wan_orchestration.families.animate.background import keep_background
from wan_orchestration.families.family import Span
from wan_orchestration.host_memory import limit_fragmentation
from wan_orchestration.protocol.messages import SegmentFacts, Task
from wan_orchestration.stopwatch import Phase, Stopwatch, since
from wan_orchestration.video.reader import FrameReader, pingpong
from wan_orchestration.video.stills import read_image
from wan_orchestration.weights.snapshot import Snapshot

OnSegmentStep = Callable[[int, int, int], None]
"""Receives the segment's index, the take, both from 0, and the number of denoising steps done."""


@dataclass(frozen=True)
class Plan:
    """What all ranks must know about a task. Rank 0 makes and announces it."""

    snapshot: Snapshot
    task: Task
    loras: tuple[Lora, ...]
    first: int
    """Number of segments that are finished already."""
    count: int
    """Number of segments of the video."""
    colours: Colours | None = None
    """Of the first segment, if it is finished and the others are matched to it."""
    placement: Name = "resident"
    driving_cache: str | None = None
    """Where the driving frames' keys and values lie, if the settings leave it open."""
    first_take: int = 0
    """Number of takes of segment `first` that are finished already."""
    pass_number: int = 0
    """Which of the task's passes this is, from 0; see `generate/passes.py`."""
    passes: int = 1

    @cached_property
    def spans(self) -> list[Span]:
        """The frames of each segment of a pass."""
        return self.task.settings.spans(self.task.clips.driving.frames)

    @property
    def before(self) -> int:
        """Segments of the passes before. Progress counts the segments of all passes."""
        return self.pass_number * self.count

    @property
    def total(self) -> int:
        """Segments of all passes."""
        return self.passes * self.count


@dataclass(frozen=True)
class Execution:
    """How a task's segments are computed: the attention kernel, the placement, TF32, compiled blocks."""

    attention: str
    placement: Name
    tf32: bool
    compiled: bool = False
    compile_error: str | None = None
    """Why blocks run uncompiled although they were to be compiled."""


@dataclass(frozen=True)
class Kept:
    """What the next segments build on."""

    guide: Tensor
    """The last frames of the segment, (3, refert_num, H, W) float32 on the CPU."""
    colours: Colours | None = None
    """Of the first segment, if the others are matched to it."""


@dataclass(frozen=True)
class Segment:
    """One take of a segment."""

    index: int
    take: int
    seed: int
    """Of the noise, see `Take`."""
    video: Tensor
    """Its new frames, (3, n, H, W) float32 on the device, in [-1, 1]."""
    kept: Kept
    """What the next segment builds on if this take is kept."""
    facts: SegmentFacts


_ROLES = {"src_bg": "background"}
"""Fields of `SegmentInput` whose names differ from the clip's."""

Receive = Callable[[Segment], Kept | None]
"""Receives a take on rank 0. Returns what the next segments build on, or None: make the segment again."""


class SegmentMaker:
    """Generates segments on one rank, together with the other ranks. It holds the models from one task to the next."""

    def __init__(
        self,
        ranks: Ranks,
        fsdp: bool = False,
        cache_root: Path | None = None,
        is_cancelled: Callable[[], bool] = lambda: False,
    ) -> None:
        limit_fragmentation()
        self.ranks, self.fsdp, self.cache_root = ranks, fsdp and ranks.size > 1, cache_root
        self.is_cancelled = is_cancelled
        """Whether the present task is to stop. Only rank 0 asks."""
        self.models: Models | None = None
        self.healthy = True
        """False once a task has failed for an unknown reason: this process may be damaged."""
        self.execution: Execution | None = None
        """Of the last task."""
        self.stopwatch = Stopwatch(_synchronize)
        """Measures everything that this rank does."""

    def make(
        self,
        plan: Plan,
        guide: np.ndarray | None = None,
        on_step: OnSegmentStep | None = None,
        receive: Receive | None = None,
    ) -> None:
        """Generate the segments of a task from `plan.first` on. If the task is cancelled, all ranks return early.

        Args:
            plan: the task.
            guide: (3, refert_num, H, W) float32 of the last finished segment, if there is one. Only rank 0 passes it.
            on_step: called at each denoising step, and with 0 steps done when a take begins.
            receive: called with each take of each segment. Only rank 0 passes it.
        """
        try:
            self._make(plan, guide, on_step or _ignore, receive or _keep)
        except Cancelled:
            return
        except Exception as error:
            # Before the other ranks learn of the error, because dropping the models drops their waiting collectives.
            self.recover(error)
            raise

    def _make(self, plan: Plan, guide: np.ndarray | None, on_step: OnSegmentStep, receive: Receive) -> None:
        settings, clips = plan.task.settings, plan.task.clips
        before = self.stopwatch.read()
        animator, execution = self._prepare(plan)
        guide_shape = (3, settings.refert_num, clips.height, clips.width)
        kept = Kept(self._share_guide(guide, guide_shape), plan.colours) if plan.first else None
        with _input_reader(plan) as start_reading:
            coming = start_reading(plan.first)
            for index in range(plan.first, plan.count):
                inputs, conditions, decided = None, None, None
                for take in count(plan.first_take if index == plan.first else 0):
                    report = partial(self._report, on_step, index, take)
                    report(0)
                    if conditions is None:
                        inputs = coming.result()
                        conditions = animator.condition(inputs, kept and kept.guide)
                        inputs = inputs if plan.pass_number else None  # frees memory
                        # Not earlier, so that only one segment's inputs are in memory at a time.
                        coming = start_reading(index + 1) if index + 1 < plan.count else Future()
                    seed = seed_of(settings.seed, index, take)
                    video = animator.animate(conditions, report, seed if take else None)
                    compilation = animator.compilation
                    self.execution = replace(execution, compiled=compilation.compiled, compile_error=compilation.error)
                    video, own = self._finish(plan, index, video, kept, inputs)
                    now = self.stopwatch.read()
                    facts, before = _facts(plan, video.shape[1], since(now, before)), now
                    decided = self._decide(plan, Segment(index, take, seed, video, own, facts), receive)
                    del video  # otherwise it would stay on the device until the next one is decoded
                    if decided:
                        break
                kept = decided

    def _finish(
        self, plan: Plan, index: int, video: Tensor, before: Kept | None, inputs: Any | None
    ) -> tuple[Tensor, Kept]:
        """Match a take's colours, and cut off the frames that the video has already or does not need.

        With `inputs`, the video keeps their background. Returns the new frames, and what the next segment builds on if
        this take is kept.
        """
        settings, span = plan.task.settings, plan.spans[index]
        colours = before and before.colours
        if settings.color_match == "lab":
            with self.stopwatch.during("decoding"):
                colours = colours or colours_of(video)
                video = matched(video, colours) if index else video
        # In replace mode the background clip holds the colours: only the repeated frames are decoded a second time.
        if settings.color_match == "auto" and settings.mode == "animate" and before:
            with self.stopwatch.during("decoding"):
                video = continued(video, before.guide)
        if inputs and plan.pass_number:
            with self.stopwatch.during("decoding"):
                video = keep_background(video, inputs.background, inputs.mask)
        guide = video[:, -settings.refert_num :].cpu()
        new = video[:, span.repeated : plan.task.clips.driving.frames - span.start]
        return plan.task.clips.shown(new), Kept(guide, colours)

    def _decide(self, plan: Plan, segment: Segment, receive: Receive) -> Kept | None:
        """What the next segments build on, on all ranks. None: the segment is made again."""
        kept = receive(segment) if self.ranks.leads else segment.kept
        if not plan.task.settings.retakes:
            return kept
        again = torch.tensor([kept is None], dtype=torch.uint8)
        if self.ranks.share(again).item():
            return None
        # An earlier take may be kept, which may have been made before this process began.
        own = kept or segment.kept
        guide, colours = self.ranks.share(own.guide.contiguous()), own.colours
        if colours is not None:
            colours = tuple(self.ranks.share(torch.tensor(colours, dtype=torch.float64)).tolist())
        return Kept(guide, colours)

    def _report(self, on_step: OnSegmentStep, index: int, take: int, done: int) -> None:
        """Call `on_step`. Raises Cancelled: the task is to stop here, on all ranks."""
        cancelled = torch.tensor([self.ranks.leads and self.is_cancelled()], dtype=torch.uint8)
        if self.ranks.share(cancelled).item():
            raise Cancelled
        on_step(index, take, done)

    def _prepare(self, plan: Plan) -> tuple[Animator, Execution]:
        """The animator, ready for the next take of segment `plan.first`."""
        settings, clips = plan.task.settings, plan.task.clips
        if plan.driving_cache:
            settings = settings.model_copy(update={"driving_cache": plan.driving_cache})
        device, _ = pick_device(settings, self.ranks)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        models, size = self._models_for(plan), (clips.height, clips.width)
        make = clips.family.part("animator").Animator
        picture, area = read_image(clips.reference), clips.canvas and clips.canvas.area
        animator = make(models, settings, picture, *size, plan.loras, plan.count - plan.first, area)
        self.execution = Execution(animator.attention, plan.placement, models.tf32)
        animator.skip(plan.first + (1 if plan.first_take else 0))
        return animator, self.execution

    def free_models(self) -> bool:
        """Free the models. Returns whether that was possible: several ranks would have to free them together."""
        if self.models is None or self.ranks.size > 1:
            return False
        models, self.models = self.models, None
        models.free_all()
        return True

    def recover(self, error: Exception) -> None:
        """After an error, drop the models if memory ran out, or with FSDP, because its connections may be closed."""
        if self.fsdp or ran_out_of_memory(error):
            self.models = None
        elif self.models:
            self.models.cache.forget()  # a tensor may have been missed by the ranks that failed

    def _share_guide(self, guide: np.ndarray | None, shape: tuple[int, ...]) -> Tensor:
        return self.ranks.share(torch.empty(shape) if guide is None else torch.from_numpy(guide))

    def _models_for(self, plan: Plan) -> Models:
        """The models for a task. Only what differs from the last task is changed.

        Raises:
            BadInput: this machine cannot run the models with these settings.
        """
        settings = plan.task.settings
        device, dtype = pick_device(settings, self.ranks)
        tf32 = use_tf32(settings, device, dtype)
        quantize.check(settings.quantization, device, self.fsdp)
        options: dict[str, Any] = {
            "snapshot": plan.snapshot,
            "device": device,
            "dtype": dtype,
            "placement": plan.placement,
            "quantization": settings.quantization,
            "vae_dtype": getattr(torch, settings.vae_dtype),
            "tf32": tf32,
        }
        if self.models:
            self.models.change(**options)
        else:
            self.models = Models(
                ranks=self.ranks, fsdp=self.fsdp, cache_root=self.cache_root, stopwatch=self.stopwatch, **options
            )
        return self.models


def seed_of(seed: int, segment: int, take: int) -> int:
    """The seed of a take's noise. Take 0 has the job's: its noise is the next part of the sequence."""
    if take == 0:
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed} {segment} {take}".encode()).digest()[:8]) >> 1


def _facts(plan: Plan, frames: int, spent: dict[Phase, float]) -> SegmentFacts:
    return SegmentFacts(
        frames=frames,
        seconds=sum(seconds for phase, seconds in spent.items() if phase != "loading"),
        seconds_per_step=spent["denoising"] / plan.task.settings.sampling_steps,
        placement=plan.placement,
    )


@contextmanager
def _input_reader(plan: Plan) -> Iterator[Callable[[int], "Future[Any]"]]:
    """Yields a function that takes a segment's index and reads its input frames in a thread."""
    clips = plan.task.clips
    with ExitStack() as stack:
        readers = {
            _ROLES.get(name, name.removeprefix("src_")): stack.enter_context(FrameReader(info.path))
            for name, info in clips.videos.items()
        }
        thread = stack.enter_context(ThreadPoolExecutor(1))

        def read(index: int) -> Any:
            span = plan.spans[index]
            frames = {
                name: reader.read(pingpong(reader.info.frames, span.start, span.length))
                for name, reader in readers.items()
            }
            if plan.pass_number:
                # The background is the video of the pass before, which still shows the person.
                frames["background"] *= frames["mask"] <= 127
            return clips.family.part("animator").SegmentInput(**frames)

        yield lambda index: thread.submit(read, index)


def _ignore(index: int, take: int, done: int) -> None:
    return


def _keep(segment: Segment) -> Kept:
    return segment.kept


def _synchronize() -> None:
    """Wait for this rank's device, if it is a CUDA device that has been used."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
