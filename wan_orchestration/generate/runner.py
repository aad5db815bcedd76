"""Runs the tasks of one request after another, on all ranks of the launch together. The models stay loaded."""

import logging
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

import torch

from wan_orchestration.engine.animator import parallel_branches
from wan_orchestration.engine.device import device_name, pick_device
from wan_orchestration.engine.lora import Lora
from wan_orchestration.engine.memory.capacity import ran_out_of_memory
from wan_orchestration.engine.parallel.ranks import RankFailed, connect
from wan_orchestration.errors import BadInput, Cancelled
from wan_orchestration.families.animate.family import RELIGHTING_LORA
from wan_orchestration.files import replacing
from wan_orchestration.generate.fallback import with_fallback
from wan_orchestration.generate.fingerprint import fingerprints
from wan_orchestration.generate.finishing import join, measure_quality
from wan_orchestration.generate.notices import NoticeCollector
from wan_orchestration.generate.passes import Pass, Passes
from wan_orchestration.generate.resume import UnfinishedVideo
from wan_orchestration.generate.segments import Execution, Plan, SegmentMaker
from wan_orchestration.generate.takes import TakeKeeper
from wan_orchestration.generate.ticker import Ticker, ticking
from wan_orchestration.host_memory import give_back_unused, peak, reset_peak
from wan_orchestration.preprocess.networks import Networks
from wan_orchestration.protocol.messages import (
    Reporter,
    Request,
    Result,
    Seconds,
    SnapshotInfo,
    Task,
)
from wan_orchestration.settings.environment import World, environment
from wan_orchestration.settings.generate import GenerateSettings
from wan_orchestration.stopwatch import Phase, since
from wan_orchestration.weights.snapshot import Snapshot, open_snapshot

log = logging.getLogger(__name__)


def run(
    requests: Iterable[tuple[Request, Reporter]] | None,
    is_cancelled: Callable[[], bool] = lambda: False,
    networks: Networks | None = None,
) -> list[Result]:
    """Run every task of all requests, together with the other ranks of the launch if there are any.

    The models stay loaded from one request to the next. A failed task does not stop the next: its `Result` has the
    error. After a request in which one failed for an unknown reason, no more requests are asked for.

    A finished task has `video.mp4`, `poster.jpg`, `preview.webp` and `result.json` in its output folder.

    Only rank 0 writes and reports. The other ranks follow it: they pass None and get no results. With
    `WAN_ENABLE_SEQUENCE_PARALLEL=false` they return at once, and rank 0 works alone.

    Args:
        requests: each with its reporter. The next one is asked for when the one before is done.
        is_cancelled: whether the present request is cancelled. Its task stops at the next denoising step and has no
            result; neither have those after it.
        networks: the estimators' networks that this process keeps open.
    """
    env, world = environment(), World()
    if env.enable_sequence_parallel is False:
        if world.rank > 0:
            return []
        world = World(world_size=1)
    results: list[Result] = []
    networks = networks or Networks()
    with connect(world) as ranks:
        maker = SegmentMaker(ranks, env.enable_fsdp, env.cache_root, is_cancelled)
        if requests is None:
            follow(maker)
            return []
        networks.make_room = maker.free_models
        for request, reporter in requests:
            with suppress(Cancelled):
                results += run_tasks(request, reporter, maker, networks)
            if not (maker.healthy and ranks.usable):
                break
    return results


def run_tasks(request: Request, reporter: Reporter, maker: SegmentMaker, networks: Networks) -> list[Result]:
    """Run the tasks of one request on rank 0. Raises Cancelled."""
    before = maker.stopwatch.read()
    try:
        with maker.stopwatch.during("encoding"):
            snapshot = open_snapshot(request.snapshot, request.revision, variant=request.variant)
    except BadInput as error:
        results = [
            Result(
                job_id=task.job_id,
                status="failed",
                created_at=task.created_at,
                settings=task.settings,
                error=str(error),
                bad_input=True,
            )
            for task in request.tasks
        ]
        for result in results:
            reporter.finished(result)
        return results
    runner = Runner(snapshot, reporter, maker, networks, before, request.warm)
    return [runner.run(task) for task in request.tasks]


def follow(maker: SegmentMaker) -> None:
    """Take part in the tasks that rank 0 announces, until it leaves."""
    ranks = maker.ranks
    while ranks.usable and (plan := ranks.announce()) is not None:
        try:
            ranks.together(lambda plan=plan: maker.make(plan))
        except Exception as error:
            # Rank 0 gets this error too, and reports it.
            if not isinstance(error, BadInput | RankFailed):
                traceback.print_exc()
            maker.recover(error)


class Runner:
    """Runs tasks on rank 0."""

    def __init__(
        self,
        snapshot: Snapshot,
        reporter: Reporter,
        maker: SegmentMaker,
        networks: Networks | None = None,
        counted: dict[Phase, float] | None = None,
        warm: bool = False,
    ) -> None:
        self.snapshot = snapshot
        self.reporter = reporter
        self.maker = maker
        self.networks = networks or Networks()
        self.ranks = maker.ranks
        self.stopwatch = maker.stopwatch
        self.warm = warm
        self._counted = counted or self.stopwatch.read()
        """The stopwatch's reading that the results of earlier tasks account for."""

    def run(self, task: Task) -> Result:
        """Run one task. An error while generating becomes part of the result and is not raised.

        Raises:
            Cancelled: the task, or the request before it began.
        """
        self._stop_if_cancelled()
        started_at = datetime.now(UTC)
        with NoticeCollector(task.job_id, self.reporter) as notices, Passes(task) as passes:
            outcome = self._attempt(task, passes)
            result = Result(
                job_id=task.job_id,
                created_at=task.created_at,
                started_at=started_at,
                finished_at=datetime.now(UTC),
                seconds=self._seconds(task),
                resumed_segments=passes.resumed,
                restarted=passes.restarted,
                notices=notices.texts,
                warm=self.warm,
                settings=task.settings,
                snapshot=SnapshotInfo(
                    path=self.snapshot.path, layout=self.snapshot.layout, revision=self.snapshot.revision
                ),
                **outcome,
            )
            if result.status == "succeeded":
                with replacing(task.output / "result.json") as part:
                    part.write_text(result.model_dump_json(indent=2))
            self.reporter.finished(result)
            if result.status == "succeeded":
                # Last, because another run resumes from the segments if this process is killed earlier.
                passes.discard()
        give_back_unused()
        return result

    def _attempt(self, task: Task, passes: Passes) -> dict[str, Any]:
        """Generate the video. Returns fields of the result: those of the video, or of the error."""
        known: dict[str, Any] = {}
        try:
            device, dtype = pick_device(task.settings, self.ranks)
            known = {"device": device_name(device), "dtype": str(dtype).removeprefix("torch.")}
            return {"status": "succeeded", **known, **self._generate(task, passes, device, dtype)}
        except BadInput as error:
            return {"status": "failed", **known, "error": str(error), "bad_input": True}
        except Cancelled:
            raise
        except Exception as error:
            known_reason = False
            if isinstance(error, RankFailed):
                text = str(error)
            elif known_reason := ran_out_of_memory(error):
                text = f"out of memory: {error}"
            else:
                self.reporter.log(traceback.format_exc())
                text = f"{type(error).__name__}: {error}"
            self.maker.healthy &= known_reason
            # An earlier run may have damaged the process, so a task may succeed in a new one.
            damaged = self.warm and not self.maker.healthy
            return {"status": "failed", **known, "error": text, "may_pass": damaged or not self.ranks.usable}

    def _generate(self, task: Task, passes: Passes, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
        """Start or resume the video and finish it. Returns fields of its result."""
        for notice in (notice for one in passes for notice in one.task.clips.notices):
            log.warning(notice)
        _reset_peak_memory(device)
        loras = self._loras(task.settings)

        def allow(one: Pass) -> dict[bool, str]:
            """The fingerprints under which a pass may be resumed."""
            before = passes[one.number - 1].unfinished.fingerprint if one.number else None
            world, lossless = self.ranks.size, one.unfinished.lossless
            return fingerprints(one.task, self.snapshot, loras, device, dtype, world, before, lossless)

        allowed: list[dict[bool, str]] = []
        for one in passes:
            allowed.append(allow(one))
            one.unfinished.open(*allowed[-1].values())
        count, done = task.settings.segments(task.clips.driving.frames), len(passes.segments)
        plan = Plan(self.snapshot, task, loras, done, count, passes=len(passes))
        if done:
            self.reporter.log(f"{task.job_id}: resumes after segment {done} of {plan.total}")
        execution = None
        with ticking(plan, self.maker, self._counted, self.reporter) as ticker:
            for one in passes:
                if (first := len(one.unfinished.segments)) == count:
                    continue
                if one.number:
                    # The pass before may have been generated under another of its fingerprints since.
                    allowed[one.number] = allow(one)
                    with self.stopwatch.during("finishing"):
                        one.put_on(passes[one.number - 1], self._stop_if_cancelled)
                takes = len(one.unfinished.takes)
                plan = replace(plan, task=one.task, first=first, pass_number=one.number)
                if takes:
                    number = plan.before + first + 1
                    self.reporter.log(f"{task.job_id}: resumes with take {takes + 1} of segment {number}")
                ticker.before = plan.before
                execution = self._make_segments(plan, one.unfinished, allowed[one.number], ticker)
            last = passes[-1]
            with self.stopwatch.during("finishing"):
                video = join(last.task, last.unfinished)
                quality = measure_quality(
                    task, last.unfinished, self.snapshot, self.maker.models, self.reporter.log, self.networks
                )
        segments = passes.segments
        return {
            **video,
            **(asdict(execution) if execution else {}),
            "segments": plan.total,
            "made_segments": segments,
            "placement": segments[-1].placement,
            "finite": passes.finite,
            "quality": quality,
            "peak_memory_bytes": _peak_memory(device),
        }

    def _make_segments(
        self, plan: Plan, unfinished: UnfinishedVideo, allowed: dict[bool, str], ticker: Ticker
    ) -> Execution | None:
        """Generate the segments that are missing, and keep them. Returns how they were computed."""
        if not self.ranks.usable:
            raise RankFailed("not started: the processes lost each other in an earlier job of this launch; try again")
        self._explain_ranks(plan.task)
        with_fallback(
            plan,
            self.maker,
            unfinished,
            allowed,
            log=self.reporter.log,
            make=partial(self._keep_segments, unfinished=unfinished, ticker=ticker),
            networks=self.networks,
        )
        if len(unfinished.segments) < plan.count:
            done = plan.before + len(unfinished.segments)
            self.reporter.log(f"{plan.task.job_id}: stopped after segment {done} of {plan.total}")
            raise Cancelled
        execution = self.maker.execution
        if execution and execution.compile_error:
            self.reporter.log(f"{plan.task.job_id}: the blocks ran uncompiled: {execution.compile_error}")
        return execution

    def _keep_segments(self, plan: Plan, unfinished: UnfinishedVideo, ticker: Ticker) -> None:
        """Generate the segments of a plan from `plan.first` on, and write each to disk."""
        with TakeKeeper(plan, self.maker, unfinished, self.reporter, self.networks) as keeper:
            self.maker.make(plan, unfinished.guide(), ticker.step, keeper.receive)

    def _stop_if_cancelled(self) -> None:
        """Raise Cancelled if the request is cancelled. Only while the other ranks wait for a plan."""
        if self.maker.is_cancelled():
            raise Cancelled

    def _seconds(self, task: Task) -> Seconds:
        """Seconds of this task: all that no earlier result contains."""
        now = self.stopwatch.read()
        seconds, self._counted = Seconds.of(since(now, self._counted)), now
        if seconds.load:
            self.reporter.log(f"{task.job_id}: loading the weights took {seconds.load:.1f} s")
        return seconds

    def _loras(self, settings: GenerateSettings) -> tuple[Lora, ...]:
        loras = [Lora.parse(text) for text in settings.lora]
        if settings.use_relighting_lora:
            file = self.snapshot.path / RELIGHTING_LORA
            if not file.is_file():
                raise BadInput(f"use_relighting_lora: the snapshot has no {file}")
            loras.insert(0, Lora(file))
        return tuple(loras)

    def _explain_ranks(self, task: Task) -> None:
        """Log how the ranks share the task."""
        size, settings = self.ranks.size, task.settings
        if size == 1:
            return
        branches = parallel_branches(settings, size)
        line = f"{task.job_id}: {size} ranks, sequence parallel of degree {size // branches}"
        line += ", guidance branches side by side" if branches == 2 else ""
        line += ", weights sharded (FSDP)" if self.maker.fsdp else ""
        if settings.cfg_parallel and branches == 1:
            why = "guide_scale is not above 1" if not settings.guided else "the number of ranks is odd"
            line += f"; cfg_parallel has no effect, because {why}"
        self.reporter.log(line)


def _reset_peak_memory(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        reset_peak()


def _peak_memory(device: torch.device) -> int:
    """Bytes of this task's peak: on the device, or in host memory if it runs on the CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak()
