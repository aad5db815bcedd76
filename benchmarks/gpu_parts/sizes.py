"""The sizes and models to measure with, those of the 14B model or tiny ones, and helpers to run and time them."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from gpu_parts.record import Work
from wan_orchestration.engine.memory.placement import SegmentShape
from wan_orchestration.engine.memory.sizes import Sizes
from wan_orchestration.jobs.clips import check_clips
from wan_orchestration.protocol.messages import FinishedSegment, Progress, Request, Result, Task
from wan_orchestration.settings.generate import GenerateSettings

REAL = {"480p": SegmentShape(480, 832, 77), "720p": SegmentShape(720, 1280, 77)}
TINY = {"480p": SegmentShape(64, 96, 9), "720p": SegmentShape(96, 128, 9)}


def shape(work: Work, size: str) -> SegmentShape:
    return (TINY if work.tiny else REAL)[size]


def precision(work: Work) -> torch.dtype:
    return torch.bfloat16 if work.device == "cuda" else torch.float32


def snapshot(work: Work) -> Path:
    """A small random snapshot. With weights of the 14B model's sizes, only its tokenizer is used."""
    from benchmarks.random_snapshot import write

    folder = work.scratch / "snapshot"
    if not folder.exists():
        write(folder)
    return folder


def engine_sizes(work: Work) -> Sizes:
    """Sizes of the measured models, in the dtypes they run in here."""
    from wan_orchestration.cli.plan import snapshot_sizes
    from wan_orchestration.engine.memory.sizes import sizes
    from wan_orchestration.weights.snapshot import open_snapshot

    return sizes(open_snapshot(snapshot(work)), precision(work)) if work.tiny else snapshot_sizes(None)


def models(work: Work, **how: Any) -> Any:
    """The engine's `Models`, with weights of the 14B model's sizes unless tiny."""
    from wan_orchestration.engine.models import Models
    from wan_orchestration.weights.snapshot import open_snapshot

    if not work.tiny:
        from random_14b import use_random_weights

        use_random_weights()
    return Models(open_snapshot(snapshot(work)), torch.device(work.device), precision(work), **how)


def allow_tf32(convolutions: bool = False, products: bool = False) -> None:
    """Set what may compute float32 in TF32. In a bfloat16 job the engine allows it for convolutions."""
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = convolutions, products


def synchronize(work: Work) -> None:
    if work.device == "cuda":
        torch.cuda.synchronize()


def timed(work: Work, call: Callable[[], object], times: int = 1, warm_up: int = 0) -> float:
    """The fastest of several calls, in seconds."""
    for _ in range(warm_up):
        call()
    fastest = float("inf")
    for _ in range(times):
        synchronize(work)
        started = time.perf_counter()
        call()
        synchronize(work)
        fastest = min(fastest, time.perf_counter() - started)
    return fastest


@contextmanager
def peak(work: Work, gigabytes: dict[str, float]) -> Iterator[None]:
    """Put the peak of allocated device memory in GB into a dictionary. Does nothing on the CPU."""
    if work.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    yield
    if work.device == "cuda":
        gigabytes["peak GB"] = torch.cuda.max_memory_allocated() / 1e9


def free(work: Work) -> None:
    import gc

    gc.collect()
    if work.device == "cuda":
        torch.cuda.empty_cache()


def psnr(ours: Any, theirs: Any) -> float:
    """PSNR in dB of values in [-1, 1]."""
    import math

    import numpy as np

    error = float(np.mean((np.asarray(ours, np.float64) - np.asarray(theirs, np.float64)) ** 2))
    return 10 * math.log10(4 / error) if error else math.inf


class Listener:
    """A reporter that records when each denoising step was done, and calls `on_step`."""

    def __init__(self, work: Work, on_step: Callable[[Progress], None] | None = None) -> None:
        self.work, self.on_step = work, on_step
        self.steps: list[tuple[str, int, int, float]] = []
        """Job, segment, step, and the time at which the device had finished it."""

    def log(self, message: str) -> None:
        print(message, flush=True)

    def progress(self, progress: Progress) -> None:
        if self.steps and self.steps[-1][:3] == (progress.job_id, progress.segment, progress.step):
            return  # a repeated report of the same step
        synchronize(self.work)
        self.steps.append((progress.job_id, progress.segment, progress.step, time.perf_counter()))
        if self.on_step:
            self.on_step(progress)

    def segment(self, segment: FinishedSegment) -> None:
        print(segment, flush=True)

    def finished(self, result: Result) -> None:
        return


def run_tasks(work: Work, tasks: list[Task], listener: Listener, small: bool = False) -> list[Result]:
    """Run tasks in this process, with weights of the 14B model's sizes unless tiny or `small`.

    Each is a request of its own, as those of runs that take over a warm launch.
    """
    from wan_orchestration.generate.runner import run

    if not (work.tiny or small):
        from random_14b import use_random_weights

        use_random_weights()
    folder = snapshot(work)
    requests = [Request(snapshot=folder, tasks=[task], warm=task is not tasks[0]) for task in tasks]
    return run([(request, listener) for request in requests])


def make_task(work: Work, name: str, segment: SegmentShape, frames: int, save: bool = False, **fields: Any) -> Task:
    """A task for a job whose clips are drawn for it."""
    from long_video import draw_job

    folder = work.scratch / f"job-{segment.width}x{segment.height}-{frames}"
    if not folder.exists():
        draw_job(folder, frames, segment.height, segment.width)
    settings = GenerateSettings.model_validate({"device": work.device, "clip_len": segment.frames} | fields)
    output = work.scratch / name
    return Task(
        job_id=name,
        clips=check_clips(folder, settings.mode, settings.refert_num),
        output=output,
        settings=settings,
        created_at=datetime.now(UTC),
        save_frames=output.with_suffix(".npz") if save else None,
    )
