"""Chooses the placement for a task, and retries with the next one if memory runs out."""

from collections.abc import Callable
from dataclasses import replace

import psutil
import torch

from wan_orchestration.engine.device import pick_device
from wan_orchestration.engine.memory.capacity import device_memory, ran_out_of_memory
from wan_orchestration.engine.memory.placement import (
    Placement,
    SegmentShape,
    all_placements,
    choose,
    has_seams,
    out_of_memory,
)
from wan_orchestration.engine.memory.sizes import sizes
from wan_orchestration.engine.parallel.ranks import Ranks
from wan_orchestration.generate.resume import UnfinishedVideo
from wan_orchestration.generate.segments import Plan, SegmentMaker
from wan_orchestration.preprocess.networks import Networks


def with_fallback(
    plan: Plan,
    maker: SegmentMaker,
    unfinished: UnfinishedVideo,
    fingerprints: dict[bool, str],
    log: Callable[[str], None],
    make: Callable[[Plan], None],
    networks: Networks | None = None,
) -> None:
    """Generate a task's missing segments on all ranks. If memory runs out, retry with the next placement.

    If the launch keeps networks of estimators open, they are freed first, and the placement is tried once more.

    Args:
        plan: the task.
        maker: of rank 0.
        unfinished: holds the finished segments.
        fingerprints: of the video, by whether it has seams.
        log: writes a line for users.
        make: generates and keeps the segments of a plan from `plan.first` on.
        networks: the estimators' networks that this process keeps open.

    Raises:
        torch.OutOfMemoryError: no placement is left to try, the ranks cannot retry, or finished segments would be lost.
    """
    ranks, job_id, clips = maker.ranks, plan.task.job_id, plan.task.clips
    began_with_seams = unfinished.fingerprint == fingerprints.get(True)
    held = maker.models.host_memory * ranks.size if maker.models else 0
    ways = placements_for(plan, ranks, maker.fsdp, began_with_seams, networks, held)
    while True:
        way = ways[0]
        fingerprint = fingerprints[has_seams(way.name, clips.height, ranks.size)]
        if fingerprint != unfinished.fingerprint:
            _restart(plan, unfinished, fingerprint, log)
        plan = replace(
            plan,
            placement=way.name,
            driving_cache=way.cache or None,
            first=len(unfinished.segments),
            first_take=len(unfinished.takes),
            colours=unfinished.colours,
        )
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
            freed = ranks.usable and networks is not None and networks.free()
            if not freed and (len(ways) == 1 or not ranks.usable):
                shape = SegmentShape(clips.height, clips.width, plan.task.settings.clip_len)
                raise torch.OutOfMemoryError(out_of_memory(error, way, shape)) from error
        if not freed:
            ways = ways[1:]
        again = f"{way.name} without the estimators' networks" if freed else ways[0].name
        log(f"{job_id}: out of memory with placement {way.name}; trying {again}")


def placements_for(
    plan: Plan, ranks: Ranks, fsdp: bool, seams: bool, networks: Networks | None = None, held: int = 0
) -> list[Placement]:
    """The placements to try for a task: the one in the settings, or the fastest that fits and then slower ones.

    If a faster one fits without `networks`, they are freed.

    Finished segments are kept if possible. If they have `seams`, the rest is `tiled` too. If they have none, the
    placements without seams are tried first, even if only `tiled` is expected to fit. The models of an earlier task
    hold `held` bytes of host memory, which this task may use.
    """
    settings, clips = plan.task.settings, plan.task.clips
    device, dtype = pick_device(settings, ranks)
    wanted = "tiled" if settings.placement == "auto" and seams else settings.placement
    if device.type == "cpu":
        return [Placement("resident" if wanted == "auto" or fsdp else wanted)]
    driving = (clips.driving.height, clips.driving.width) if settings.family.reads_driving else None
    shape = SegmentShape(clips.height, clips.width, settings.clip_len, settings.guided, driving)
    found = sizes(plan.snapshot, dtype, settings.quantization != "off", getattr(torch, settings.vae_dtype))
    ways = all_placements(found, shape, settings, ranks.size, fsdp)
    if wanted != "auto":
        named = [way for way in ways if way.name == wanted] or ways[:1]
        return named if len(named) == 1 else choose(named, *_memory_for(named, device, networks or Networks(), held))
    alike = [way for way in ways if not (plan.first and has_seams(way.name, clips.height, ranks.size))]
    return choose(alike, *_memory_for(alike, device, networks or Networks(), held)) + ways[len(alike) :]


def _memory_for(ways: list[Placement], device: torch.device, networks: Networks, held: int) -> tuple[int, int]:
    """Bytes of device and host memory for the models. Frees `networks` if a faster placement then fits."""
    vram, ram = device_memory(device), psutil.virtual_memory().available + held
    on_device, on_host = networks.bytes_on(device.type), networks.bytes_on("cpu")
    # Subtracted, because `device_memory` counts what PyTorch's networks hold as free. Doubled, because other networks
    # may hold twice their files' size.
    beside = choose(ways, vram - on_device, ram)
    if choose(ways, vram + 2 * on_device, ram + 2 * on_host)[0] != beside[0] and networks.free():
        return device_memory(device), psutil.virtual_memory().available + held
    return vram - on_device, ram


def _restart(plan: Plan, unfinished: UnfinishedVideo, fingerprint: str, log: Callable[[str], None]) -> None:
    """Drop segments that would not match the next ones.

    Raises:
        torch.OutOfMemoryError: there are such segments, and the settings ask to keep them.
    """
    if not unfinished.segments:
        unfinished.restart(fingerprint)
        return
    place = f"segment {plan.before + len(unfinished.segments)} of {plan.total}"
    reason = f"only placement tiled fits into memory, and its seams would begin after {place}"
    if plan.task.settings.tiled_fallback == "fail":
        raise torch.OutOfMemoryError(
            f"{reason}. The finished segments are kept: run the job again when there is more memory, or with "
            "tiled_fallback: restart to generate all of them again"
        )
    log(f"{plan.task.job_id}: {reason}; all segments are generated again")
    unfinished.restart(fingerprint, reason)
