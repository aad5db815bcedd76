"""Whole jobs: the first of a process compared with the second, and how busy the GPU is between two segments."""

import json
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from gpu_parts.record import Record, Work
from gpu_parts.sizes import Listener, engine_sizes, make_task, run_tasks, shape
from wan_orchestration.engine.memory.placement import OVERHEAD, placements
from wan_orchestration.protocol.messages import Progress, Result

STEPS = 4
WHOLE_STEPS = 20
BUSY = 0.97
PLAN_SHARE = 0.1
LONGEST_GAPS = 4
Span = tuple[float, float]


def job_480p(work: Work, record: Record) -> None:
    """A job of one segment with two denoising steps, then one of two segments with four, the second one profiled."""
    segment, seam = shape(work, "480p"), Seam(work)
    fields: dict[str, Any] = {"placement": "resident", "compile": "on" if work.device == "cuda" else "off"}
    first = make_task(work, "first", segment, segment.frames, sampling_steps=2, **fields)
    second = make_task(work, "second", segment, 2 * segment.frames - 1, sampling_steps=STEPS, **fields)
    listener = Listener(work, seam.step)
    if work.device == "cuda":
        # The profiler's first use takes seconds, which must not count as the job's.
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]):
            torch.ones(1, device="cuda").add_(1)
    for task, result in zip((first, second), run_tasks(work, [first, second], listener), strict=True):
        if result.error:
            raise RuntimeError(result.error)
        of_result(record, task.job_id, result, listener)
    seam.report(record, listener)
    memory(work, record, "480p", result, seam.peaks)


def of_result(record: Record, name: str, result: Result, listener: Listener) -> None:
    seconds, at = result.seconds, {(segment, step): t for job, segment, step, t in listener.steps if job == name}
    steps = [
        after - before for (segment, step), before in at.items() if (after := at.get((segment, step + 1))) and step
    ]
    figures: dict[str, Any] = {
        "load, s": seconds.load,
        "compile, s": getattr(seconds, "compile", None),
        "first step, s": at[1, 1] - at[1, 0] if (1, 0) in at else None,
        "later steps, s": min(steps, default=None),
        "encode, s": seconds.encode,
        "denoise, s": seconds.denoise,
        "decode, s": seconds.decode,
        "all, s": seconds.total,
    }
    if result.peak_memory_bytes:
        figures["peak GB"] = result.peak_memory_bytes / 1e9
    how = f"{result.attention}, {'compiled' if result.compiled else 'not compiled'}, {result.placement}"
    why = getattr(result, "compile_error", None)
    if name == "second":
        how += "; denoise includes the profiler's own time"
    note = how + (f"; {why}" if why else "")
    warm = ", as in a warm launch" if result.warm else ""
    record.row(f"{name} job of the process{warm}, {result.segments} segments", figures, note=note)


class Seam:
    """Watches the second job from the last denoising step of its first segment to the last of its second."""

    def __init__(self, work: Work) -> None:
        self.work, self.profiler = work, None
        self.trace = work.scratch / "trace.json"
        self.began = self.ended = 0.0
        self.peaks: dict[str, float] = {}

    def step(self, progress: Progress) -> None:
        if progress.job_id != "second":
            return
        at = progress.segment, progress.step
        if at == (1, STEPS):
            self.note("peak GB, first segment until its decoding")
            self.start()
        elif at == (2, 0):
            self.note("peak GB, decoding")
        elif at == (2, 1):
            self.note("peak GB, conditioning and a step")
        elif at == (2, STEPS):
            self.stop()

    def note(self, phase: str) -> None:
        if self.work.device == "cuda":
            self.peaks[phase] = torch.cuda.max_memory_allocated() / 1e9
            # The runner then reports the peak of the last phase only; `memory` takes the largest.
            torch.cuda.reset_peak_memory_stats()

    def start(self) -> None:
        if self.work.device == "cuda":
            self.profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])
            self.profiler.start()
        self.began = time.perf_counter()

    def stop(self) -> None:
        self.ended = time.perf_counter()
        if self.profiler:
            self.profiler.stop()
            self.profiler.export_chrome_trace(str(self.trace))

    def report(self, record: Record, listener: Listener) -> None:
        """The GPU is idle only between segments, so more denoising steps do not change the idle time."""
        at = {(segment, step): t for job, segment, step, t in listener.steps if job == "second"}
        step = (at[2, STEPS] - at[2, 1]) / (STEPS - 1)
        wall, outside = self.ended - self.began, at[2, 1] - at[1, STEPS] - step
        figures: dict[str, Any] = {"s": wall, "s outside the steps": outside}
        kept = {"size": "480p", "outside": outside}
        if not self.profiler:
            record.row("a segment after the first", figures, note="GPU use is measured on CUDA only", **kept)
            return
        record.row("memory by phase", dict(self.peaks))
        spans = busy_spans(self.trace)
        if not spans:
            record.cannot("how busy the GPU is", "the profiler saw no kernels")
            record.row("a segment after the first", figures, **kept)
            return
        idle = wall - sum(end - start for start, end in spans)
        whole = wall + (WHOLE_STEPS - STEPS) * step
        share = 1 - idle / whole
        figures |= {"GPU idle, s": idle, f"busy, {STEPS} steps": f"{1 - idle / wall:.1%}"}
        figures[f"busy, {WHOLE_STEPS} steps"] = f"{share:.1%}"
        gaps = sorted((after[0] - before[1], before[1] - spans[0][0]) for before, after in pairwise(spans))
        longest = gaps[: -LONGEST_GAPS - 1 : -1]
        note = "longest gaps: " + ", ".join(f"{gap:.2f} s at {start:.2f}" for gap, start in longest)
        note += f"; {WHOLE_STEPS} steps are extrapolated"
        record.row("a segment after the first", figures, f"busy >= {BUSY:.0%}", share >= BUSY, note, **kept)


def busy_spans(trace: Path) -> list[Span]:
    """Spans in seconds in which the GPU computed or copied, ordered and without overlaps, from a profiler's trace."""
    events = json.loads(trace.read_text())["traceEvents"]
    times = sorted(
        (event["ts"] / 1e6, (event["ts"] + event["dur"]) / 1e6)
        for event in events
        if event.get("ph") == "X" and event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")
    )
    spans: list[Span] = []
    for start, end in times:
        if spans and start <= spans[-1][1]:
            spans[-1] = spans[-1][0], max(end, spans[-1][1])
        else:
            spans.append((start, end))
    return spans


def memory(work: Work, record: Record, size: str, result: Result, peaks: dict[str, float] | None = None) -> None:
    """Compare the peak of a resident job with its plan, without CUDA's own memory."""
    if work.device != "cuda" or not result.peak_memory_bytes:
        return
    plan = next(way for way in placements(engine_sizes(work), shape(work, size)) if way.name == "resident")
    most = max(result.peak_memory_bytes / 1e9, *(peaks or {"": 0.0}).values())
    planned = (plan.vram - OVERHEAD) / 1e9
    share = most / planned - 1
    figures = {"peak GB": most, "plan GB": planned, "off by": f"{share:+.1%}"}
    record.row(f"{size}, resident, against the plan", figures, "within 10 % of the plan", abs(share) <= PLAN_SHARE)
