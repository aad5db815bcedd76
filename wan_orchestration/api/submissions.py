"""Taking jobs in: from a request to a run in the queue, exactly one however often and from wherever it is sent."""

import hashlib
import json
import threading
import uuid
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import chain, count
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from wan_orchestration.api import uploads
from wan_orchestration.api.confine import check_inputs, check_lora, job_key
from wan_orchestration.api.jobs import UPLOADED, Jobs
from wan_orchestration.api.models import Job, Settings, Submission, Upload
from wan_orchestration.api.problems import FieldProblem, Problem, field_problems
from wan_orchestration.api.queue import Queue
from wan_orchestration.api.uploads import Form
from wan_orchestration.api.webhooks import check_webhook, webhook_tags
from wan_orchestration.defs.jobs.run_requests import PRIORITY, run_tags
from wan_orchestration.defs.jobs.versions import JobVersion
from wan_orchestration.errors import BadInput
from wan_orchestration.formats import VIDEO_SUFFIXES
from wan_orchestration.jobs.clips import check_clips
from wan_orchestration.jobs.folder import Job as JobFolder
from wan_orchestration.jobs.folder import key_from
from wan_orchestration.settings.environment import Environment
from wan_orchestration.settings.service import ApiSettings
from wan_orchestration.video.reader import open_input, probe
from wan_orchestration.video.stills import read_image

REQUEST = "wan/request"
"""Tag of a run: a hash of what was asked for."""

NAMESPACE = uuid.UUID("5c0a6f1e-51f4-4d0e-9f42-6f0f0a0c9a1b")
"""An Idempotency-Key decides the run's id, so that the database itself holds no two runs of one key."""

DECODING = threading.Semaphore(2)
"""How many uploads are looked into at once: a picture may need several hundred MB."""


@dataclass
class Order:
    """One request for a video."""

    ask: JobVersion
    """The job, by which the `drop_folder` sensor knows that there has been a run for what its folder holds."""
    settings: Settings
    digest: str
    """Hash of the request."""
    config: dict[str, Any] = field(default_factory=dict)
    """The run's config: settings that are not in the job's own `job.yaml`."""
    priority: int = 0
    idempotency_key: str | None = None
    upload: Path | None = None
    """A new job folder that is to be brought to its place."""
    numbered: bool = False
    """Whether the job gets a number behind its name where there is one of that name already."""


class Submissions:
    """Takes jobs in."""

    def __init__(self, jobs: Jobs, queue: Queue, env: Environment, api: ApiSettings) -> None:
        self.jobs, self.queue, self.env, self.api = jobs, queue, env, api

    def folder(self, submission: Submission, idempotency_key: str | None) -> Job:
        """Make the video of a job folder. Problem, BadInput."""
        key = job_key(submission.src_root_path, self.env)
        self._check_settings(submission)
        folder = JobFolder.open(self.env.jobs_root / key)
        check_inputs(folder, self.env)
        generate, preprocess = submission.generate_given(), submission.preprocess_given()
        if preprocess and folder.kind == "clips":
            raise BadInput(f"preprocess: job {key} holds ready clips; such settings are for a driving video")
        if "mode" in generate:
            preprocess["mode"] = generate["mode"]
        self._check_contents(folder, generate, preprocess)
        given = {"generated_video": generate, "preprocessed_clips": preprocess}
        ops = {op: {"config": config} for op, config in given.items() if config}
        order = Order(
            ask=JobVersion.of(folder),
            settings=submission,
            digest=_digest([key, submission.model_dump(mode="json", exclude={"src_root_path"}, exclude_none=True)]),
            config={"ops": ops} if ops else {},
            priority=folder.file.priority if submission.priority is None else submission.priority,
            idempotency_key=idempotency_key,
        )
        return self._submit(order)

    def upload(self, form: Form, idempotency_key: str | None) -> Job:
        """Make a job folder of a form that was received, and its video. Problem, BadInput."""
        try:
            settings = Upload.model_validate(form.fields)
        except ValidationError as error:
            raise Problem(422, "some fields cannot be used", field_problems(error.errors())) from None
        self._check_settings(settings)
        names = [form.client_names.get(name, "") for name in ("reference", "src_ref", "driving", "src_pose")]
        made_up = key_from(*names) or f"{datetime.now(UTC):%Y%m%d-%H%M%S}"
        try:
            uploads.furnish(form, settings)
            folder = JobFolder.open(form.folder, settings.name or made_up)
            self._check_contents(folder, {}, {})
        except BadInput as error:
            raise form.refusal(error) from None
        (form.folder / UPLOADED).touch()
        order = Order(
            ask=JobVersion.of(folder),
            settings=settings,
            digest=_digest([form.digest, settings.model_dump(mode="json", exclude_none=True)]),
            priority=settings.priority or 0,
            idempotency_key=idempotency_key,
            upload=form.folder,
            numbered=settings.name is None,
        )
        return self._submit(order)

    def _submit(self, order: Order) -> Job:
        run_id = str(uuid.uuid5(NAMESPACE, order.idempotency_key) if order.idempotency_key else uuid.uuid4())
        with self.queue.turn():
            key = self._known(order, run_id)
            if key is None:
                if self.jobs.waiting() >= self.api.max_queued:
                    raise Problem(429, f"{self.api.max_queued} jobs are waiting already", headers={"Retry-After": "60"})
                if order.numbered:
                    order.ask = replace(order.ask, key=self._free(order.ask.key))
                key = order.ask.key
                self._start(order, run_id)
        return self.jobs.get(key)

    def _free(self, key: str) -> str:
        """The key, or the first of `key-2`, `key-3`, ... that no job has or has had."""
        numbered = (f"{key}-{number}" for number in count(2))
        return next(name for name in chain([key], numbered) if not self.jobs.is_taken(name))

    def _known(self, order: Order, run_id: str) -> str | None:
        """The job as which this request was taken in before. Problem: it is at odds with one that was."""
        key = order.ask.key
        if order.idempotency_key:
            run = self.queue.instance.get_run_by_id(run_id)
            if run and run.tags.get(REQUEST) != order.digest:
                raise Problem(422, "this Idempotency-Key came with another request before; use a new one")
            if run:
                return run.tags["dagster/partition"]
        record = self.jobs.record(key)
        if record is None or order.upload:
            return None
        if record.dagster_run.is_finished and not record.dagster_run.is_complete_and_waiting_to_retry:
            return None
        known = record.dagster_run.tags.get(REQUEST)
        # A run that a sensor or a person has started goes by the job's own settings.
        plain = not order.config and not order.settings.webhook_url
        if known != order.digest and not (known is None and plain):
            raise Problem(409, f"job {key} has not ended yet, and was asked for with other settings; cancel it first")
        return key

    def _start(self, order: Order, run_id: str) -> None:
        key = order.ask.key
        tags = {**run_tags([order.ask]), PRIORITY: str(order.priority), REQUEST: order.digest}
        if order.settings.webhook_url:
            tags |= webhook_tags(str(order.settings.webhook_url))
        self.queue.create(key, run_id, order.config, tags)
        try:
            # Only now, so that the sensor that watches the folders never meets one without a run.
            if order.upload:
                self._place(order.upload, key)
        except BaseException:
            self.queue.instance.delete_run(run_id)
            raise
        self.queue.submit(key, run_id)

    def _place(self, folder: Path, key: str) -> None:
        target = self.env.jobs_root / key
        if target.exists():
            detail = f"there is a job of the name {key} already"
            raise Problem(409, detail, [FieldProblem(field="name", detail=detail)])
        folder.rename(target)

    def _check_settings(self, settings: Settings) -> None:
        for value in settings.generate_given().get("lora", []):
            check_lora(value, self.env)
        if settings.webhook_url:
            check_webhook(settings.webhook_url, self.api)

    def _check_contents(self, job: JobFolder, generate: dict[str, Any], preprocess: dict[str, Any]) -> None:
        """Look at a job as its run will, so that what cannot work is said at once. BadInput."""
        settings = job.generate_settings(**generate)
        job.preprocess_settings(**preprocess)
        with DECODING:
            for path in job.inputs.values():
                if path.suffix[1:].lower() in VIDEO_SUFFIXES:
                    self._check_size(path)
            if job.kind == "clips":
                clips = check_clips(job.folder, settings.mode, settings.refert_num)
                videos = clips.videos()
            else:
                read_image(job.inputs["reference"])
                videos = [probe(job.inputs["driving"])]
        for info in videos:
            if info.duration > self.api.max_video_seconds:
                raise BadInput(
                    f"{info.path}: lasts {info.duration:.1f} s, expected at most {self.api.max_video_seconds:g} s"
                )

    def _check_size(self, path: Path) -> None:
        """By what the file says of itself, before a frame is decoded."""
        with open_input(path) as container:
            for stream in container.streams.video:
                if stream.width * stream.height > self.api.max_video_pixels:
                    raise BadInput(
                        f"{path}: frames of {stream.width}x{stream.height}, "
                        f"expected at most {self.api.max_video_pixels / 1e6:.1f} million pixels"
                    )


def _digest(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
