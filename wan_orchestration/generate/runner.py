"""Loads a snapshot once and runs tasks one after another, segment by segment, on all ranks of the launch together."""

import hashlib
import json
import logging
import math
import resource
import traceback
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec

import torch

from wan_orchestration.animate.conditioning import to_frames
from wan_orchestration.animate.device import pick_device, wants_tf32
from wan_orchestration.animate.lora import Lora
from wan_orchestration.animate.memory.placement import WAYS, ClipShape, Name, has_seams, out_of_memory
from wan_orchestration.animate.memory.room import ran_out_of_memory
from wan_orchestration.animate.parallel.ranks import RankFailed, connect
from wan_orchestration.errors import BadInput
from wan_orchestration.files import replacing, sha256
from wan_orchestration.generate.estimate import Estimate, Rates, keep_rates, read_rates
from wan_orchestration.generate.resume import SegmentRecord, UnfinishedVideo
from wan_orchestration.generate.segments import Plan, SegmentMaker
from wan_orchestration.generate.ticker import Ticker
from wan_orchestration.jobs.clips import Clips
from wan_orchestration.protocol.messages import (
    FinishedSegment,
    Reporter,
    Request,
    Result,
    Seconds,
    SegmentFacts,
    SnapshotInfo,
    Task,
)
from wan_orchestration.quality.likeness import likeness
from wan_orchestration.quality.pose import estimator_at_hand
from wan_orchestration.quality.video_quality import measure
from wan_orchestration.settings.environment import World, environment
from wan_orchestration.settings.generate import GenerateSettings
from wan_orchestration.stopwatch import PHASES, since
from wan_orchestration.video.concat import concatenate
from wan_orchestration.video.reader import FrameReader
from wan_orchestration.video.stills import write_poster
from wan_orchestration.weights.snapshot import RELIGHTING_LORA, Snapshot, open_snapshot

log = logging.getLogger(__name__)


def run(request: Request | None, reporter: Reporter | None) -> list[Result]:
    """Run every task of a request, together with the other ranks of the launch where there are any.

    A failed task does not stop the next: its `Result` says what went wrong. Each finished task has `video.mp4`,
    `poster.jpg` and `result.json` in its output folder.

    Rank 0 alone writes and reports. The other ranks follow it: they pass None and get no results. With
    `WAN_ENABLE_SEQUENCE_PARALLEL=false` they return at once, and rank 0 works alone.

    Raises:
        BadInput: the snapshot cannot be used.
    """
    env, world = environment(), World()
    if env.enable_sequence_parallel is False:
        if world.rank > 0:
            return []
        world = World(world_size=1)
    with connect(world) as ranks:
        maker = SegmentMaker(ranks, env.enable_fsdp, env.cache_root)
        if not ranks.leads:
            follow(maker)
            return []
        assert request is not None
        assert reporter is not None
        with maker.stopwatch.during("loading"):
            snapshot = open_snapshot(request.snapshot, request.revision)
        runner = Runner(snapshot, reporter, maker)
        return [runner.run(task) for task in request.tasks]


def follow(maker: SegmentMaker) -> None:
    """Take part in the tasks that rank 0 announces, until it leaves."""
    ranks = maker.ranks
    while ranks.usable and (plan := ranks.announce()) is not None:
        try:
            ranks.together(lambda plan=plan: deque(maker.segments(plan), maxlen=0))
        except Exception as error:
            # Rank 0 hears of it and reports it.
            if not isinstance(error, BadInput | RankFailed):
                traceback.print_exc()
            maker.recover(error)


class Runner:
    """Runs tasks on rank 0."""

    def __init__(self, snapshot: Snapshot, reporter: Reporter, maker: SegmentMaker) -> None:
        self.snapshot = snapshot
        self.reporter = reporter
        self.maker = maker
        self.ranks = maker.ranks
        self.stopwatch = maker.stopwatch
        self._counted = dict.fromkeys(PHASES, 0.0)
        """Seconds that earlier tasks have in their results."""

    def run(self, task: Task) -> Result:
        """Run one task to its result; only interruptions are raised."""
        result = Result(
            job_id=task.job_id,
            status="failed",
            created_at=task.created_at,
            started_at=datetime.now(UTC),
            settings=task.settings,
            snapshot=SnapshotInfo(
                path=self.snapshot.path, layout=self.snapshot.layout, revision=self.snapshot.revision
            ),
        )
        with ExitStack() as stack:
            stack.enter_context(_Notices(result, self.reporter))
            try:
                self._generate(task, result, stack)
                result.status = "succeeded"
            except BadInput as error:
                result.error, result.bad_input = str(error), True
            except RankFailed as error:
                result.error = str(error)
            except Exception as error:
                if ran_out_of_memory(error):
                    result.error = f"out of memory: {error}"
                else:
                    self.reporter.log(traceback.format_exc())
                    result.error = f"{type(error).__name__}: {error}"
            now = self.stopwatch.read()
            result.seconds, self._counted = Seconds.of(since(now, self._counted)), now
            if result.seconds.load:
                self.reporter.log(f"{task.job_id}: loading the weights took {result.seconds.load:.1f} s of it")
            result.finished_at = datetime.now(UTC)
            result.may_pass = result.status == "failed" and not (result.bad_input or self.ranks.usable)
            if result.status == "succeeded":
                with replacing(task.output / "result.json") as part:
                    part.write_text(result.model_dump_json(indent=2))
            self.reporter.finished(result)
        return result

    def _generate(self, task: Task, result: Result, stack: ExitStack) -> None:
        """Make the video. Its segments are discarded when the stack closes; until then a run can resume."""
        settings = task.settings
        loras = self._loras(settings)
        clips = task.clips
        for notice in clips.notices:
            log.warning(notice)
        device, dtype = pick_device(settings, self.ranks)
        result.device, result.dtype = _device_name(device), str(dtype).removeprefix("torch.")
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

        count = segment_count(clips.pose.frames, settings)
        identities = self._identities(task, clips, loras, device, dtype)
        work = stack.enter_context(UnfinishedVideo(task.output, *identities.values()))
        result.resumed_segments, result.restarted = len(work.segments), work.restarted
        if work.segments:
            self.reporter.log(f"{task.job_id}: resumes after segment {len(work.segments)} of {count}")
        plan = Plan(self.snapshot, task, loras, first=len(work.segments), count=count)
        with self._ticking(plan) as ticker:
            if plan.first < count:
                self._make_segments(plan, work, identities, result, ticker)
            with self.stopwatch.during("finishing"):
                self._assemble(task, clips, work, result)
                self._measure(task, clips, work, result)
        if plan.first < count and (engine := self.maker.engine):
            for name, value in asdict(engine).items():
                setattr(result, name, value)
            if engine.compile_error:
                self.reporter.log(f"{task.job_id}: its blocks ran uncompiled: {engine.compile_error}")
        stack.callback(work.discard)
        result.segments, result.placement = count, work.segments[-1].placement
        result.finite = all(record.finite for record in work.segments)
        result.peak_memory_bytes = _peak_memory(device)

    @contextmanager
    def _ticking(self, plan: Plan) -> Iterator[Ticker]:
        """While a task is run: progress by what is known of this snapshot on this device, and more is learnt."""
        settings, pose = plan.task.settings, plan.task.clips.pose
        device, dtype = pick_device(settings, self.ranks)
        cache, held = self.maker.cache_root, self.maker.models
        file = cache and cache / self.snapshot.fingerprint[:16] / "seconds.json"
        name = f"{_device_name(device)} x {self.ranks.size}, {dtype}"
        rates = (file and read_rates(file, name)) or Rates.guess(self.snapshot.bytes, device.type == "cuda")
        estimate = Estimate(
            rates,
            size=pose.height * pose.width * settings.clip_len / 1e6,
            segments=plan.count,
            first=plan.first,
            steps=settings.sampling_steps,
            forwards=2 if settings.guide_scale > 1 and _branches(settings, self.ranks.size) == 1 else 1,
            loads=held is None or (held.device, held.dtype) != (device, dtype),
            seconds=self._counted,
        )
        with Ticker(plan.task.job_id, estimate, self.stopwatch, self.reporter) as ticker:
            yield ticker
        if file:
            keep_rates(file, name, estimate.rates)

    def _make_segments(
        self, plan: Plan, work: UnfinishedVideo, identities: dict[bool, str], result: Result, ticker: Ticker
    ) -> None:
        if not self.ranks.usable:
            raise RankFailed("not started: the processes lost each other in an earlier job of this launch; try again")
        self._explain(plan.task)
        ways = self.maker.ways(plan, seams=work.identity == identities.get(True))
        for way, others in zip(ways, [*ways[1:], None], strict=True):
            identity = identities[has_seams(way.name, plan.task.clips.pose.height, self.ranks.size)]
            if identity != work.identity:
                self._start_anew(plan, work, identity, result)
            colours = work.segments[0].colours if work.segments else None
            plan = replace(plan, placement=way.name, first=len(work.segments), colours=colours)
            if way.vram:
                self.reporter.log(f"{plan.task.job_id}: placement {way}")
            self.ranks.announce(plan)
            try:
                self.ranks.together(lambda plan=plan: self._keep_segments(plan, work, ticker))
                break
            except Exception as error:
                self.maker.recover(error)
                if not ran_out_of_memory(error):
                    raise
                if len(work.segments) == plan.count:
                    break
                if others is None or not self.ranks.usable:
                    pose, clip_len = plan.task.clips.pose, plan.task.settings.clip_len
                    shape = ClipShape(pose.height, pose.width, clip_len)
                    raise torch.OutOfMemoryError(out_of_memory(error, way, shape)) from error
                self.reporter.log(f"{plan.task.job_id}: out of memory with placement {way.name}; trying {others.name}")

    def _start_anew(self, plan: Plan, work: UnfinishedVideo, identity: str, result: Result) -> None:
        """Drop segments that the next ones would differ from. OutOfMemoryError: there are some, to be kept."""
        reason, place = None, f"segment {len(work.segments)} of {plan.count}"
        if work.segments:
            reason = f"only placement tiled has memory enough, and its seams would begin after {place}"
            if plan.task.settings.tiled_fallback == "fail":
                raise torch.OutOfMemoryError(
                    f"{reason}. The finished segments are kept: run the job again when there is more memory, or with "
                    "tiled_fallback: restart to generate all of them again"
                )
            self.reporter.log(f"{plan.task.job_id}: {reason}; all segments are generated again")
            result.restarted, result.resumed_segments = reason, 0
        work.start(identity, reason)

    def _keep_segments(self, plan: Plan, work: UnfinishedVideo, ticker: Ticker) -> None:
        task = plan.task
        # A segment is encoded while the next is made; leaving the block waits for the last.
        with ThreadPoolExecutor(1) as writer:
            writing: Future[None] | None = None
            for number, segment in enumerate(self.maker.segments(plan, work.guide(), ticker.step), plan.first + 1):
                with self.stopwatch.during("finishing"):
                    record = SegmentRecord(
                        frames=segment.video.shape[1],
                        seconds=Seconds.of(segment.seconds),
                        finite=bool(torch.isfinite(segment.video).all()),
                        colours=segment.colours,
                        placement=plan.placement,
                    )
                    exact = segment.video.cpu().numpy() if task.save_frames else None
                    if writing:
                        writing.result()
                    writing = writer.submit(
                        work.finish_segment,
                        to_frames(segment.video),
                        plan.task.clips.pose.fps,
                        segment.guide.numpy(),
                        record,
                        exact,
                    )
                    facts = _facts(record, task.settings).model_dump()
                    self.reporter.segment(
                        FinishedSegment(job_id=task.job_id, segment=number, segments=plan.count, **facts)
                    )
                    del segment, exact  # not needed while the next segment is made
            if writing:
                with self.stopwatch.during("finishing"):
                    writing.result()

    def _explain(self, task: Task) -> None:
        """Log how the ranks share the task."""
        size, settings = self.ranks.size, task.settings
        if size == 1:
            return
        branches = _branches(settings, size)
        line = f"{task.job_id}: {size} ranks, sequence parallel of degree {size // branches}"
        line += ", guidance branches side by side" if branches == 2 else ""
        line += ", weights sharded (FSDP)" if self.maker.fsdp else ""
        if settings.cfg_parallel and branches == 1:
            why = "guide_scale is not above 1" if settings.guide_scale <= 1 else "the number of ranks is odd"
            line += f"; cfg_parallel has no effect, because {why}"
        self.reporter.log(line)

    def _assemble(self, task: Task, clips: Clips, work: UnfinishedVideo, result: Result) -> None:
        video = task.output / "video.mp4"
        if lost := concatenate(work.files(), video, clips.sound, clips.pose.start):
            log.warning(lost)
        with FrameReader(video) as reader:
            info = reader.info
            write_poster(task.output / "poster.jpg", reader.read([info.frames // 2])[0])
        if task.save_frames:
            work.save_exact(task.save_frames)
        result.video_path = video
        result.frames, result.fps = info.frames, float(info.fps)
        result.width, result.height = info.width, info.height

    def _measure(self, task: Task, clips: Clips, work: UnfinishedVideo, result: Result) -> None:
        """Preview and quality of a video that is there: whatever goes wrong with them is no reason to lose it."""
        result.made_segments = [_facts(record, task.settings) for record in work.segments]
        models, models_root = self.maker.models, environment().models_root
        assert models_root is not None
        assert result.video_path is not None
        try:
            result.quality = measure(
                result.video_path,
                clips,
                [record.frames for record in work.segments],
                task.output / "preview.webp",
                lambda: estimator_at_hand(self.snapshot.path, models_root),
                models and partial(likeness, models.image_encoder(), models.device),
            )
        except Exception:
            self.reporter.log(f"{task.job_id}: the quality could not be measured\n{traceback.format_exc()}")

    def _loras(self, settings: GenerateSettings) -> tuple[Lora, ...]:
        loras = [Lora.parse(text) for text in settings.lora]
        if settings.use_relighting_lora:
            file = self.snapshot.path / RELIGHTING_LORA
            if not file.is_file():
                raise BadInput(f"use_relighting_lora: the snapshot has no {file}")
            loras.insert(0, Lora(file))
        return tuple(loras)

    def _identities(
        self, task: Task, clips: Clips, loras: tuple[Lora, ...], device: torch.device, dtype: torch.dtype
    ) -> dict[bool, str]:
        """A hash of everything that decides the frames, by whether they have the seams of bands, as far as they may."""
        settings, packages = task.settings, ["av", "diffusers", "torch", "transformers"]
        packages += ["torchao"] if settings.quantization != "off" and find_spec("torchao") else []
        names: list[Name] = list(WAYS) if settings.placement == "auto" else [settings.placement]
        files = [clips.reference, *(lora.file for lora in loras)]
        files += [lora.config for lora in loras if lora.config]
        files += [info.path for info in (clips.pose, clips.face, clips.background, clips.mask) if info]
        facts = settings.decisive() | {
            "dtype": str(dtype),
            "tf32": wants_tf32(settings, device, dtype),
            "versions": [version(package) for package in packages],
            "exact": task.save_frames is not None,
            "files": [sha256(file) for file in files],
            "snapshot": self.snapshot.fingerprint,
        }
        return {
            seams: hashlib.sha256(json.dumps(facts | {"tiled": seams}, sort_keys=True).encode()).hexdigest()
            for seams in sorted({has_seams(name, clips.pose.height, self.ranks.size) for name in names})
        }


class _Notices(logging.Handler):
    """Warnings of this package while a task runs: each goes once into its result and to the log that users read."""

    def __init__(self, result: Result, reporter: Reporter) -> None:
        super().__init__(logging.WARNING)
        self.result, self.reporter = result, reporter

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if text not in self.result.notices:
            self.result.notices.append(text)
            self.reporter.log(f"{self.result.job_id}: {text}")

    def __enter__(self) -> None:
        logging.getLogger("wan_orchestration").addHandler(self)

    def __exit__(self, *_: object) -> None:
        logging.getLogger("wan_orchestration").removeHandler(self)


def _branches(settings: GenerateSettings, size: int) -> int:
    """How many branches of guidance so many ranks work on side by side."""
    return 2 if settings.cfg_parallel and settings.guide_scale > 1 and size % 2 == 0 else 1


def _facts(record: SegmentRecord, settings: GenerateSettings) -> SegmentFacts:
    return SegmentFacts(
        frames=record.frames,
        seconds=sum(record.seconds.model_dump(exclude={"load", "total"}).values()),
        placement=record.placement,
        seconds_per_step=record.seconds.denoise / settings.sampling_steps,
    )


def segment_count(frames: int, settings: GenerateSettings) -> int:
    """Segments needed for so many frames; every segment after the first repeats refert_num of them."""
    stride = settings.clip_len - settings.refert_num
    return max(1, math.ceil((frames - settings.refert_num) / stride))


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
