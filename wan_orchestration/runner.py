"""Loads a snapshot once and runs tasks one after another, clip by clip."""

import hashlib
import json
import math
import resource
import time
import traceback
from contextlib import ExitStack
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from wan_orchestration.animate.animator import Animator, ClipInput
from wan_orchestration.animate.conditioning import to_frames
from wan_orchestration.animate.lora import Lora
from wan_orchestration.animate.models import Models
from wan_orchestration.errors import BadInput
from wan_orchestration.files import replacing
from wan_orchestration.job import Clips, check_clips
from wan_orchestration.messages import Progress, Reporter, Request, Result, SnapshotInfo, Task
from wan_orchestration.settings import GenerateSettings
from wan_orchestration.snapshot import RELIGHTING_LORA, Snapshot, open_snapshot
from wan_orchestration.video import FrameReader, concatenate, pingpong, read_image, write_poster
from wan_orchestration.work import ClipRecord, Work


def run(request: Request, reporter: Reporter) -> list[Result]:
    """Run every task of a request.

    A failed task does not stop the next: its `Result` says what went wrong. Each finished task has `video.mp4`,
    `poster.jpg` and `result.json` in its output folder.
    """
    runner = Runner(open_snapshot(request.snapshot, request.revision), reporter)
    return [runner.run(task) for task in request.tasks]


class Runner:
    """Holds the models of a snapshot from one task to the next."""

    def __init__(self, snapshot: Snapshot, reporter: Reporter) -> None:
        self.snapshot = snapshot
        self.reporter = reporter
        self.models: Models | None = None

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
        try:
            self._generate(task, result)
            result.status = "succeeded"
        except BadInput as error:
            result.error, result.bad_input = str(error), True
        except torch.OutOfMemoryError as error:
            self.models = None
            result.error = (
                f"the device ran out of memory ({str(error).splitlines()[0]}); "
                "use a smaller video, a smaller clip_len, or a device with more memory"
            )
        except Exception as error:
            self.reporter.log(traceback.format_exc())
            result.error = f"{type(error).__name__}: {error}"
        result.finished_at = datetime.now(UTC)
        if result.status == "succeeded":
            with replacing(task.output / "result.json") as part:
                part.write_text(result.model_dump_json(indent=2))
        self.reporter.finished(result)
        return result

    def _generate(self, task: Task, result: Result) -> None:
        started = time.perf_counter()
        settings = task.settings
        loras = self._loras(settings)
        clips = check_clips(task.clips, settings.mode, settings.refert_num)
        device, dtype = pick_device(settings)
        result.device, result.dtype = _device_name(device), str(dtype).removeprefix("torch.")
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

        count = clip_count(clips.pose.frames, settings)
        with ExitStack() as stack:
            work = stack.enter_context(Work(task.output, self._identity(task, clips, loras, dtype)))
            result.resumed_clips = len(work.clips)
            if work.clips:
                self.reporter.log(f"{task.job_id}: goes on after clip {len(work.clips)} of {count}")
            if len(work.clips) < count:
                models = self._models_for(device, dtype)
                loaded = models.load_seconds
                self._make_clips(task, clips, models, loras, work, count)
                result.seconds.load = models.load_seconds - loaded
            self._assemble(task, clips, work, result)
            work.discard()
        for record in work.clips:
            for phase, seconds in record.seconds.items():
                setattr(result.seconds, phase, getattr(result.seconds, phase) + seconds)
        result.seconds.total = time.perf_counter() - started
        result.clips = count
        result.finite = all(record.finite for record in work.clips)
        result.peak_memory_bytes = _peak_memory(device)

    def _make_clips(
        self, task: Task, clips: Clips, models: Models, loras: tuple[Lora, ...], work: Work, count: int
    ) -> None:
        settings, fps, first = task.settings, clips.pose.fps, len(work.clips)
        stride = settings.clip_len - settings.refert_num
        reference = read_image(clips.reference)
        animator = Animator(models, settings, reference, clips.pose.height, clips.pose.width, loras)
        animator.skip(first)
        ticker = _Ticker(task.job_id, first, count, settings.sampling_steps, self.reporter)
        guide = work.guide()
        with ExitStack() as stack:
            streams = {
                name: stack.enter_context(FrameReader(info.path))
                for name in ("pose", "face", "background", "mask")
                if (info := getattr(clips, name)) is not None
            }
            for index in range(first, count):
                ticker.clip(index)
                spent = dict(animator.timer.seconds)
                clip = _read_clip(streams, index * stride, settings.clip_len)
                video = animator.animate(clip, None if guide is None else torch.from_numpy(guide), ticker.step).numpy()
                guide = video[:, -settings.refert_num :].copy()
                repeated = settings.refert_num if index else 0
                video = video[:, repeated : clips.pose.frames - index * stride]
                work.finish_clip(
                    to_frames(torch.from_numpy(np.nan_to_num(video))),
                    fps,
                    guide,
                    ClipRecord(
                        frames=video.shape[1],
                        seconds={phase: value - spent[phase] for phase, value in animator.timer.seconds.items()},
                        finite=bool(np.isfinite(video).all()),
                    ),
                    video if task.save_frames else None,
                )

    def _assemble(self, task: Task, clips: Clips, work: Work, result: Result) -> None:
        video = task.output / "video.mp4"
        concatenate(work.segments(), video, audio_from=clips.pose.path if clips.pose.has_audio else None)
        with FrameReader(video) as reader:
            info = reader.info
            write_poster(task.output / "poster.jpg", reader.read([info.frames // 2])[0])
        if task.save_frames:
            work.save_exact(task.save_frames)
        result.video_path = video
        result.frames, result.fps = info.frames, float(info.fps)
        result.width, result.height = info.width, info.height

    def _models_for(self, device: torch.device, dtype: torch.dtype) -> Models:
        if self.models is None or (self.models.device, self.models.dtype) != (device, dtype):
            self.models = None
            self.models = Models(self.snapshot, device, dtype)
        return self.models

    def _loras(self, settings: GenerateSettings) -> tuple[Lora, ...]:
        loras = [Lora.parse(text) for text in settings.lora]
        if settings.use_relighting_lora:
            file = self.snapshot.path / RELIGHTING_LORA
            if not file.is_file():
                raise BadInput(f"use_relighting_lora: the snapshot has no {file}")
            loras.insert(0, Lora(file))
        return tuple(loras)

    def _identity(self, task: Task, clips: Clips, loras: tuple[Lora, ...], dtype: torch.dtype) -> str:
        """A hash of everything that decides the frames."""
        files = [clips.reference, *(lora.file for lora in loras)]
        files += [info.path for info in (clips.pose, clips.face, clips.background, clips.mask) if info]
        facts = {
            "settings": task.settings.model_dump(mode="json", exclude={"device", "offload_model"}),
            "dtype": str(dtype),
            "versions": [version(package) for package in ("av", "diffusers", "torch", "transformers")],
            "exact": task.save_frames is not None,
            "files": [_digest(file) for file in files],
            "snapshot": self.snapshot.fingerprint,
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


class _Ticker:
    """Turns finished steps into progress with an estimate of the time left."""

    def __init__(self, job_id: str, first: int, clips: int, steps: int, reporter: Reporter) -> None:
        self.job_id, self.first, self.clips, self.steps = job_id, first, clips, steps
        self.reporter = reporter
        self.started = self.clip_started = time.perf_counter()
        self.index = first

    def clip(self, index: int) -> None:
        self.index = index
        self._send(0)

    def step(self, done: int) -> None:
        self._send(done)

    def _send(self, done: int) -> None:
        now = time.perf_counter()
        if done == 0:
            self.denoise_started = now
        total = (self.index - self.first) * self.steps + done
        left = (self.clips - self.first) * self.steps - total
        self.reporter.progress(
            Progress(
                job_id=self.job_id,
                clip=self.index + 1,
                clips=self.clips,
                step=done,
                steps=self.steps,
                seconds_per_step=(now - self.denoise_started) / done if done else None,
                eta_seconds=(now - self.started) / total * left if total else None,
            )
        )


def clip_count(frames: int, settings: GenerateSettings) -> int:
    """Clips needed for so many frames; every clip after the first repeats refert_num of them."""
    stride = settings.clip_len - settings.refert_num
    return max(1, math.ceil((frames - settings.refert_num) / stride))


def pick_device(settings: GenerateSettings) -> tuple[torch.device, torch.dtype]:
    """The device and precision that the settings ask for, or that suit the machine.

    Raises:
        BadInput: CUDA is asked for and there is none.
    """
    available = torch.cuda.is_available()
    if settings.device == "cuda" and not available:
        raise BadInput("device: cuda is asked for, but PyTorch finds no CUDA device; use auto or cpu")
    name = settings.device if settings.device != "auto" else ("cuda" if available else "cpu")
    device = torch.device(name, torch.cuda.current_device()) if name == "cuda" else torch.device(name)
    auto = torch.bfloat16 if name == "cuda" else torch.float32
    return device, auto if settings.dtype == "auto" else getattr(torch, settings.dtype)


def _read_clip(streams: dict[str, FrameReader], start: int, length: int) -> ClipInput:
    def read(name: str) -> np.ndarray | None:
        reader = streams.get(name)
        return None if reader is None else reader.read(pingpong(reader.info.frames, start, length))

    pose, face = read("pose"), read("face")
    assert pose is not None
    assert face is not None
    return ClipInput(pose, face, read("background"), read("mask"))


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
