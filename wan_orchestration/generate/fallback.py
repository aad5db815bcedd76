"""Chooses the placement for a task, and retries with the next one if memory runs out."""

from collections.abc import Callable
from dataclasses import replace

import psutil
import torch

from wan_orchestration.animate.device import pick_device
from wan_orchestration.animate.memory.capacity import device_memory, ran_out_of_memory
from wan_orchestration.animate.memory.placement import (
    Placement,
    SegmentShape,
    choose,
    has_seams,
    out_of_memory,
    placements,
)
from wan_orchestration.animate.memory.sizes import sizes
from wan_orchestration.animate.parallel.ranks import Ranks
from wan_orchestration.generate.resume import UnfinishedVideo
from wan_orchestration.generate.segments import Plan, SegmentMaker


def with_fallback(
    plan: Plan,
    maker: SegmentMaker,
    unfinished: UnfinishedVideo,
    fingerprints: dict[bool, str],
    log: Callable[[str], None],
    make: Callable[[Plan], None],
) -> None:
    """Generate a task's missing segments on all ranks. If memory runs out, retry with the next placement.

    Args:
        plan: the task.
        maker: of rank 0.
        unfinished: holds the finished segments.
        fingerprints: of the video, by whether it has seams.
        log: writes a line for users.
        make: generates and keeps the segments of a plan from `plan.first` on.

    Raises:
        torch.OutOfMemoryError: no placement is left to try, the ranks cannot retry, or finished segments would be lost.
    """
    ranks, job_id, pose = maker.ranks, plan.task.job_id, plan.task.clips.pose
    began_with_seams = unfinished.fingerprint == fingerprints.get(True)
    ways = placements_for(plan, ranks, maker.fsdp, began_with_seams)
    for way, next_way in zip(ways, [*ways[1:], None], strict=True):
        fingerprint = fingerprints[has_seams(way.name, pose.height, ranks.size)]
        if fingerprint != unfinished.fingerprint:
            _restart(plan, unfinished, fingerprint, log)
        plan = replace(plan, placement=way.name, first=len(unfinished.segments), colours=unfinished.colours)
        if way.vram:
            log(f"{job_id}: placement {way}")
        ranks.announce(plan)
        try:
            ranks.together(lambda plan=plan: make(plan))
            return
        except Exception as error:
            maker.recover(error)
            if not ran_out_of_memory(error):
                raise
            if len(unfinished.segments) == plan.count:
                return
            if next_way is None or not ranks.usable:
                shape = SegmentShape(pose.height, pose.width, plan.task.settings.clip_len)
                raise torch.OutOfMemoryError(out_of_memory(error, way, shape)) from error
            log(f"{job_id}: out of memory with placement {way.name}; trying {next_way.name}")


def placements_for(plan: Plan, ranks: Ranks, fsdp: bool, seams: bool) -> list[Placement]:
    """The placements to try for a task: the one in the settings, or the fastest that fits and then slower ones.

    Finished segments are kept if possible. If they have `seams`, the rest is `tiled` too. If they have none, the
    placements without seams are tried first, even if only `tiled` is expected to fit.
    """
    settings, pose = plan.task.settings, plan.task.clips.pose
    device, dtype = pick_device(settings, ranks)
    wanted = "tiled" if settings.placement == "auto" and seams else settings.placement
    if device.type == "cpu":
        return [Placement("resident" if wanted == "auto" or fsdp else wanted)]
    shape = SegmentShape(pose.height, pose.width, settings.clip_len, guided=settings.guided)
    found = sizes(plan.snapshot, dtype, settings.quantization != "off", getattr(torch, settings.vae_dtype))
    ways = placements(found, shape, ranks.size, fsdp, keep_text=not settings.offload_model)
    if wanted != "auto":
        return [way for way in ways if way.name == wanted] or ways[:1]
    alike = [way for way in ways if not (plan.first and has_seams(way.name, pose.height, ranks.size))]
    return choose(alike, device_memory(device), psutil.virtual_memory().available) + ways[len(alike) :]


def _restart(plan: Plan, unfinished: UnfinishedVideo, fingerprint: str, log: Callable[[str], None]) -> None:
    """Drop segments that would not match the next ones.

    Raises:
        torch.OutOfMemoryError: there are such segments, and the settings ask to keep them.
    """
    if not unfinished.segments:
        unfinished.restart(fingerprint)
        return
    place = f"segment {len(unfinished.segments)} of {plan.count}"
    reason = f"only placement tiled fits into memory, and its seams would begin after {place}"
    if plan.task.settings.tiled_fallback == "fail":
        raise torch.OutOfMemoryError(
            f"{reason}. The finished segments are kept: run the job again when there is more memory, or with "
            "tiled_fallback: restart to generate all of them again"
        )
    log(f"{plan.task.job_id}: {reason}; all segments are generated again")
    unfinished.restart(fingerprint, reason)
