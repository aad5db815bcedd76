"""Whether a job takes as much memory as `memory/placement.py` plans."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import torch

from gpu_parts.job import memory, of_result
from gpu_parts.record import Record, Work
from gpu_parts.sizes import Listener, engine_sizes, make_task, run_tasks, shape
from wan_orchestration.engine.memory.placement import OVERHEAD, placements

CAP = 24e9
SAMPLE_SECONDS = 0.1


def cap_24gb(work: Work, record: Record) -> None:
    """Runs 720p with placement offload on as much memory as a 24 GB GPU has besides CUDA's own."""
    work.need_cuda()
    torch.cuda.set_per_process_memory_fraction((CAP - OVERHEAD) / torch.cuda.mem_get_info()[1])
    segment = shape(work, "720p")
    plan = next(way for way in placements(engine_sizes(work), segment) if way.name == "offload")
    task = make_task(work, "capped", segment, segment.frames, sampling_steps=2, placement="offload", compile="off")
    listener = Listener(work)
    with host_memory() as host:
        (result,) = run_tasks(work, [task], listener)
    if result.error:
        record.row("720p, offload", {}, "the 24 GB plan holds", False, result.error)
        raise RuntimeError(result.error)
    of_result(record, "capped", result, listener)
    device = (torch.cuda.max_memory_reserved() + OVERHEAD) / 1e9
    figures = {"peak GB": device, "plan GB": plan.vram / 1e9, "off by": f"{device * 1e9 / plan.vram - 1:+.1%}"}
    record.row("720p, offload: device", figures, "<= 24 GB", device * 1e9 <= CAP, "reserved, with 1.5 GB for CUDA")
    # Some systems do not count pinned memory as resident, so the loss of available memory counts too.
    most = max(host.values())
    figures = {"peak GB": most, "plan GB": plan.ram / 1e9, "off by": f"{most * 1e9 / plan.ram - 1:+.1%}", **host}
    record.row("720p, offload: host", figures, "<= the plan", most * 1e9 <= plan.ram)


@contextmanager
def host_memory() -> Iterator[dict[str, float]]:
    """In GB: the peak of this process's resident memory, and the largest loss of the machine's available memory."""
    found: dict[str, float] = {"resident set GB": 0.0, "less available GB": 0.0}
    before, over, this = psutil.virtual_memory().available, threading.Event(), psutil.Process()

    def watch() -> None:
        while not over.wait(SAMPLE_SECONDS):
            less = before - psutil.virtual_memory().available
            for name, value in (("resident set GB", this.memory_info().rss), ("less available GB", less)):
                found[name] = max(found[name], value / 1e9)

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    try:
        yield found
    finally:
        over.set()
        watching.join()


def memory_720p(work: Work, record: Record) -> None:
    """Compares the peak of a resident 720p job with its plan."""
    work.need_cuda()
    segment = shape(work, "720p")
    fields: dict[str, Any] = {"sampling_steps": 1, "placement": "resident", "compile": "off"}
    task, listener = make_task(work, "resident", segment, segment.frames, **fields), Listener(work)
    (result,) = run_tasks(work, [task], listener)
    if result.error:
        raise RuntimeError(result.error)
    of_result(record, "resident", result, listener)
    memory(work, record, "720p", result)
