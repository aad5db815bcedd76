"""Accepts jobs: turns a request into a run in the queue. docs/api.md says when a repeated request starts no other."""

import hashlib
import json
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import chain, count
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, HttpUrl, ValidationError

from wan_orchestration.api import uploads
from wan_orchestration.api.job_info import settings_tags
from wan_orchestration.api.jobs import UPLOADED, Jobs
from wan_orchestration.api.models import OF_BOTH, JobInfo, Settings, Submission, Upload
from wan_orchestration.api.paths import check_inputs, check_loras, job_key
from wan_orchestration.api.problems import FieldProblem, Problem, field_problems
from wan_orchestration.api.queue import RunQueue
from wan_orchestration.api.uploads import Form
from wan_orchestration.api.webhooks import check_webhook, webhook_tags
from wan_orchestration.defs.jobs.review import DONE, REVIEW, WANTED
from wan_orchestration.defs.jobs.run_requests import PRIORITY, make_clips, make_videos, run_tags
from wan_orchestration.defs.jobs.versions import JobVersion
from wan_orchestration.errors import BadInput
from wan_orchestration.files import remove
from wan_orchestration.formats import PICTURE_SUFFIXES, VIDEO_SUFFIXES
from wan_orchestration.jobs.clips import check_clips
from wan_orchestration.jobs.folder import Job, key_from
from wan_orchestration.settings.environment import Environment
from wan_orchestration.settings.service import ApiSettings
from wan_orchestration.video.reader import open_input, probe
from wan_orchestration.video.stills import read_image

REQUEST = "wan/request"
"""Run tag: a hash of the request."""

NAMESPACE = uuid.UUID("5c0a6f1e-51f4-4d0e-9f42-6f0f0a0c9a1b")
"""The run's id is made from the Idempotency-Key, so the database itself rejects a second run for the same key."""

DECODING = threading.Semaphore(2)
"""Limits how many submissions are decoded at once: one picture may need several hundred MB."""


M = TypeVar("M", bound=BaseModel)

Makes = Literal["clips and video", "clips", "video"]
"""What a run makes."""

DAGSTER_JOBS: dict[Makes, str | None] = {"clips and video": None, "clips": make_clips.name, "video": make_videos.name}


@dataclass
class NewRun:
    """The run that a request asks for."""

    job: JobVersion
    """The job and its content. The `drop_folder` sensor starts no other run for the same content."""
    digest: str
    """Hash of the request."""
    makes: Makes = "clips and video"
    generate: dict[str, Any] = field(default_factory=dict)
    preprocess: dict[str, Any] = field(default_factory=dict)
    """Settings that are not in `job.yaml`."""
    webhook_url: str | None = None
    priority: int = 0
    idempotency_key: str | None = None
    upload: Path | None = None
    """A new job folder, to be moved into the jobs folder."""
    replaces: bool = False
    """Whether it takes the place of the job's present folder."""
    numbered: bool = False
    """Whether a number is appended to the job's name if the name is taken."""

    @property
    def config(self) -> dict[str, Any]:
        """The run's config."""
        configs = {
            "preprocessed_clips": {} if self.makes == "video" else self.preprocess,
            "generated_video": {} if self.makes == "clips" else self.generate,
        }
        ops = {op: {"config": config} for op, config in configs.items() if config}
        return {"ops": ops} if ops else {}

    def tags(self) -> dict[str, str]:
        tags = {**run_tags([self.job]), PRIORITY: str(self.priority), REQUEST: self.digest}
        if self.webhook_url:
            tags |= webhook_tags(self.webhook_url)
        if self.makes != "clips and video":
            tags[REVIEW] = WANTED if self.makes == "clips" else DONE
            tags |= settings_tags(self.generate, self.preprocess)
        return tags


class Submissions:
    """Accepts jobs."""

    def __init__(self, jobs: Jobs, queue: RunQueue, env: Environment, api: ApiSettings) -> None:
        self.jobs, self.queue, self.env, self.api = jobs, queue, env, api

    def folder(self, submission: Submission, idempotency_key: str | None) -> JobInfo:
        """Make the video of a job folder. Problem, BadInput."""
        key = job_key(submission.src_root_path, self.env)
        self._check_settings(submission)
        job = Job.open(self.env.jobs_root / key)
        check_inputs(job, self.env)
        generate, preprocess = submission.generate_given(), submission.preprocess_given()
        if preprocess and job.kind == "clips":
            raise BadInput(f"preprocess: job {key} holds ready clips; such settings are for a driving video")
        preprocess |= of_both(generate)
        self.check_contents(job, generate, preprocess)
        new_run = NewRun(
            job=JobVersion.of(job),
            digest=digest([key, submission.model_dump(mode="json", exclude={"src_root_path"}, exclude_none=True)]),
            makes=_makes(job.file.review if submission.review is None else submission.review),
            generate=generate,
            preprocess=preprocess,
            webhook_url=_text(submission.webhook_url),
            priority=job.file.priority if submission.priority is None else submission.priority,
            idempotency_key=idempotency_key,
        )
        return self.submit(new_run)

    def upload(self, form: Form, idempotency_key: str | None) -> JobInfo:
        """Make a job folder from a received form, and its video. Problem, BadInput."""
        settings = fields_of(form, Upload)
        self._check_settings(settings)
        names = [form.client_names.get(name, "") for name in ("reference", "src_ref", "driving", "src_pose")]
        default_name = key_from(*names) or f"{datetime.now(UTC):%Y%m%d-%H%M%S}"
        try:
            uploads.make_job_folder(form, settings)
            job = Job.open(form.folder, settings.name or default_name)
            self.check_contents(job, {}, {})
        except BadInput as error:
            raise form.to_problem(error) from None
        (form.folder / UPLOADED).touch()
        new_run = NewRun(
            job=JobVersion.of(job),
            digest=digest([form.digest, settings.model_dump(mode="json", exclude_none=True)]),
            makes=_makes(job.file.review),
            webhook_url=_text(settings.webhook_url),
            priority=settings.priority or 0,
            idempotency_key=idempotency_key,
            upload=form.folder,
            numbered=settings.name is None,
        )
        return self.submit(new_run)

    def submit(self, new_run: NewRun, check: Callable[[], None] = lambda: None) -> JobInfo:
        """Start the run, unless the same request has started it before. `check` raises a Problem if it must not start.

        Problem 409, 422, 429.
        """
        run_id = str(uuid.uuid5(NAMESPACE, new_run.idempotency_key) if new_run.idempotency_key else uuid.uuid4())
        with self.queue.locked():
            key = self._find_existing(new_run, run_id)
            if key is None:
                check()
                if self.jobs.count_queued() >= self.api.max_queued:
                    raise Problem(429, f"{self.api.max_queued} jobs are waiting already", headers={"Retry-After": "60"})
                if new_run.numbered:
                    new_run.job = replace(new_run.job, key=self._free_key(new_run.job.key))
                key = new_run.job.key
                self._start(new_run, run_id)
        return self.jobs.get(key)

    def _free_key(self, key: str) -> str:
        """The key, or the first of `key-2`, `key-3`, ... that no job uses or has used."""
        numbered = (f"{key}-{number}" for number in count(2))
        return next(name for name in chain([key], numbered) if not self.jobs.is_taken(name))

    def _find_existing(self, new_run: NewRun, run_id: str) -> str | None:
        """The job that the same request started before, None if there is none.

        Problem 422: another request used the same Idempotency-Key; 409: another request started the same job.
        """
        key = new_run.job.key
        if new_run.idempotency_key:
            run = self.queue.instance.get_run_by_id(run_id)
            if run and run.tags.get(REQUEST) != new_run.digest:
                raise Problem(422, "this Idempotency-Key came with another request before; use a new one")
            if run:
                return run.tags["dagster/partition"]
        record = self.jobs.record(key)
        if record is None or new_run.upload:
            return None
        if record.dagster_run.is_finished and not record.dagster_run.is_complete_and_waiting_to_retry:
            return None
        known = record.dagster_run.tags.get(REQUEST)
        # Runs without a digest were started by a sensor or a person, with the job's own settings.
        has_own_settings = not (new_run.generate or new_run.preprocess or new_run.webhook_url)
        has_own_settings = has_own_settings and new_run.makes == _makes(new_run.job.review)
        if known != new_run.digest and not (known is None and has_own_settings):
            raise Problem(409, f"job {key} has not ended yet, and was started with other settings; cancel it first")
        return key

    def _start(self, new_run: NewRun, run_id: str) -> None:
        key = new_run.job.key
        self.queue.create(key, run_id, new_run.config, new_run.tags(), DAGSTER_JOBS[new_run.makes])
        try:
            # Not before the run exists: the sensor would start another run for a folder without one.
            if new_run.upload:
                self._place(new_run.upload, key, new_run.replaces)
        except BaseException:
            self.queue.instance.delete_run(run_id)
            raise
        self.queue.submit(key, run_id)

    def _place(self, folder: Path, key: str, replaces: bool) -> None:
        target = self.env.jobs_root / key
        if replaces:
            old = folder.with_name(f"{folder.name}.old")
            target.rename(old)
            folder.rename(target)
            remove(old)
            return
        if target.exists():
            detail = f"a job named {key} exists already"
            raise Problem(409, detail, [FieldProblem(field="name", detail=detail)])
        folder.rename(target)

    def _check_settings(self, settings: Settings) -> None:
        check_loras(settings.generate_given(), self.env)
        if settings.webhook_url:
            check_webhook(settings.webhook_url, self.api)

    def check_contents(self, job: Job, generate: dict[str, Any], preprocess: dict[str, Any]) -> None:
        """Check a job as its run will, so that the client learns of errors at once. BadInput."""
        settings = job.generate_settings(**generate)
        job.preprocess_settings(**preprocess)
        with DECODING:
            for path in job.inputs.values():
                if path.suffix[1:].lower() in VIDEO_SUFFIXES:
                    self._check_size(path)
            if job.kind == "clips":
                clips = check_clips(job.folder, settings.mode, settings.refert_num)
                videos = list(clips.videos.values())
            else:
                for path in job.inputs.values():
                    if path.suffix[1:].lower() in PICTURE_SUFFIXES:
                        read_image(path)
                videos = [probe(job.inputs["driving"])]
        for info in videos:
            if info.duration > self.api.max_video_seconds:
                raise BadInput(
                    f"{info.path}: lasts {info.duration:.1f} s, expected at most {self.api.max_video_seconds:g} s"
                )

    def _check_size(self, path: Path) -> None:
        """Check the frame size in the file's header, before any frame is decoded. BadInput."""
        with open_input(path) as container:
            for stream in container.streams.video:
                if stream.width * stream.height > self.api.max_video_pixels:
                    raise BadInput(
                        f"{path}: frames of {stream.width}x{stream.height}, "
                        f"expected at most {self.api.max_video_pixels / 1e6:.1f} million pixels"
                    )


def fields_of(form: Form, model: type[M]) -> M:
    """A form's fields that are not files. Problem 422: they cannot be used."""
    try:
        return model.model_validate(form.fields)
    except ValidationError as error:
        raise Problem(422, "some fields cannot be used", field_problems(error.errors())) from None


def of_both(generate: dict[str, Any]) -> dict[str, Any]:
    """The settings that preprocessing has too."""
    return {name: generate[name] for name in OF_BOTH & generate.keys()}


def _makes(review: bool) -> Makes:
    return "clips" if review else "clips and video"


def _text(url: HttpUrl | None) -> str | None:
    return None if url is None else str(url)


def digest(content: Any) -> str:
    """Hash of a request."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
