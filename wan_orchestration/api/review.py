"""Jobs that wait for a look at their clips: shows the clips, makes them again, starts the video."""

import os
import shutil
from pathlib import Path

import yaml

from wan_orchestration.api import uploads
from wan_orchestration.api.clips import ClipsFile, ClipsFolder, blocked, clips_info, find_clips
from wan_orchestration.api.estimate import Estimator
from wan_orchestration.api.job_info import PATH, can_start, given_settings, job_status, open_folder, priority
from wan_orchestration.api.jobs import UPLOADED, Jobs
from wan_orchestration.api.models import FINISHED, OF_BOTH, Characters, ClipsInfo, JobInfo, NewClips, Start, Status
from wan_orchestration.api.paths import check_loras
from wan_orchestration.api.problems import Problem
from wan_orchestration.api.submissions import DECODING, NewRun, Submissions, digest, fields_of, of_both
from wan_orchestration.api.uploads import PICTURES, Form
from wan_orchestration.api.webhooks import URL
from wan_orchestration.defs.freshness import clips_are_fresh, latest
from wan_orchestration.defs.jobs.run_requests import CLIPS
from wan_orchestration.defs.jobs.versions import JobVersion
from wan_orchestration.errors import BadInput
from wan_orchestration.jobs.clips import check_clips
from wan_orchestration.jobs.folder import JOB_FILE, Job
from wan_orchestration.quality.clips_quality import ClipsQuality
from wan_orchestration.settings.environment import Environment
from wan_orchestration.settings.generate import GenerateSettings


class Reviews:
    """Acts on the clips of jobs."""

    def __init__(self, jobs: Jobs, submissions: Submissions, env: Environment) -> None:
        self.jobs, self.submissions, self.env, self.instance = jobs, submissions, env, jobs.instance
        self.estimator = Estimator(env)

    def clips(self, key: str) -> ClipsInfo:
        """What a client needs to look at the clips. Problem 404; BadInput: they are damaged."""
        record = self.jobs.existing(key)
        folder = find_clips(self.env, key, job_status(self.instance, key, record))
        job = open_folder(self.env, key)
        if job is None:
            raise Problem(404, f"the folder of job {key} cannot be used any more")
        settings = job.generate_settings(**given_settings(record.dagster_run)["generate"])
        return clips_info(self.estimator, job, folder, settings, f"{PATH}/{key}/clips")

    def file(self, key: str, name: ClipsFile, character: int) -> Path:
        """A file of a character's clips, in a format that browsers show. Problem 404; BadInput: it is damaged."""
        status = job_status(self.instance, key, self.jobs.existing(key))
        path = find_clips(self.env, key, status).of_character(character).for_browsers(name)
        if path is None:
            raise Problem(404, f"job {key} has no {name}" + (f" of character {character}" if character > 1 else ""))
        return path

    def make_again(self, key: str, request: NewClips, idempotency_key: str | None) -> JobInfo:
        """Start a run that makes the clips again and stops. Problem 404, 409; BadInput."""
        run, job = self.jobs.existing(key).dagster_run, Job.open(self.env.jobs_root / key)
        if job.kind == "clips":
            raise BadInput(f"preprocess: job {key} holds ready clips; such settings are for a driving video")
        generate, preprocess = given_settings(run)["generate"], request.preprocess.model_dump(exclude_none=True)
        preprocess |= of_both(generate)
        job.preprocess_settings(**preprocess)
        new_run = NewRun(
            job=JobVersion.of(job),
            digest=digest([key, "clips", preprocess]),
            makes="clips",
            generate=generate,
            preprocess=preprocess,
            webhook_url=run.tags.get(URL),
            priority=priority(run),
            idempotency_key=idempotency_key,
        )
        return self.submissions.submit(new_run)

    def set_characters(self, key: str, form: Form, idempotency_key: str | None) -> JobInfo:
        """Replace several people of an uploaded job. Starts a run that makes the clips again and stops.

        Problem 404, 409, 422; BadInput: the pictures or the job cannot be used.
        """
        run, job = self.jobs.existing(key).dagster_run, Job.open(self.env.jobs_root / key)
        if not (job.folder / UPLOADED).is_file():
            raise Problem(409, f"job {key} was not uploaded; write characters into its job.yaml")
        if job.kind == "clips":
            raise BadInput(f"characters: job {key} holds ready clips; characters replace people of a driving video")
        fields = fields_of(form, Characters)
        if unknown := form.files.keys() - set(PICTURES):
            raise Problem(422, f"found a file {min(unknown)}; expected only {', '.join(PICTURES)}")
        try:
            _with_characters(job, form, fields.characters)
            changed = Job.open(form.folder, key)
            given = given_settings(run)
            preprocess = fields.preprocess.model_dump(exclude_none=True) if fields.preprocess else given["preprocess"]
            preprocess = {name: value for name, value in preprocess.items() if name not in {*OF_BOTH, "person"}}
            self.submissions.check_contents(changed, {}, preprocess)
        except BadInput as error:
            raise form.to_problem(error) from None
        new_run = NewRun(
            job=JobVersion.of(changed),
            digest=digest([key, form.digest, fields.characters, preprocess]),
            makes="clips",
            generate={name: value for name, value in given["generate"].items() if name not in OF_BOTH},
            preprocess=preprocess,
            webhook_url=run.tags.get(URL),
            priority=priority(run),
            idempotency_key=idempotency_key,
            upload=form.folder,
            replaces=True,
        )

        def check() -> None:
            status = job_status(self.instance, key, self.jobs.existing(key))
            if status not in FINISHED:
                raise Problem(409, f"job {key} has not ended yet; cancel it first")

        return self.submissions.submit(new_run, check)

    def start(self, key: str, request: Start, idempotency_key: str | None) -> JobInfo:
        """Start the video of the clips as they are, with the settings of the earlier requests and these.

        Problem 404; 409: it cannot be started, its folder has changed, or its clips are blocked. BadInput.
        """
        run, job = self.jobs.existing(key).dagster_run, Job.open(self.env.jobs_root / key)
        version, wanted = JobVersion.of(job), request.model_dump(exclude_none=True)
        check_loras(wanted, self.env)
        generate = given_settings(run)["generate"] | wanted
        settings = job.generate_settings(**generate)
        clips = latest(self.instance, CLIPS.to_user_string(), key)
        if not self._not_startable(key):
            folder = find_clips(self.env, key, "ready")
            if clips is None or not clips_are_fresh(clips.tags, version):
                raise Problem(409, f"the folder of job {key} has changed since its clips were made; make them again")
            _check_clips(job, folder, settings)
        # A later run may have failed to make other clips.
        made_by = clips and self.instance.get_run_by_id(clips.run_id)
        new_run = NewRun(
            job=version,
            digest=digest([key, "start", generate]),
            makes="video",
            generate=generate,
            preprocess=given_settings(made_by or run)["preprocess"],
            webhook_url=run.tags.get(URL),
            priority=priority(run),
            idempotency_key=idempotency_key,
        )

        def check() -> None:
            if status := self._not_startable(key):
                raise Problem(409, f"job {key} is {status}; only a job that is ready can be started")

        return self.submissions.submit(new_run, check)

    def _not_startable(self, key: str) -> Status | None:
        """The job's status if its video cannot be started."""
        record = self.jobs.existing(key)
        status = job_status(self.instance, key, record)
        return None if can_start(self.instance, self.env, key, status, record.dagster_run) else status


def _check_clips(job: Job, folder: ClipsFolder, settings: GenerateSettings) -> None:
    """Check that a video can be made of the clips as they are. Problem 409; BadInput."""
    if reason := blocked(job, ClipsQuality.read(folder.path)):
        raise Problem(409, reason)
    with DECODING:
        check_clips(folder.path, settings.mode, settings.refert_num, settings.model)


def _with_characters(job: Job, form: Form, persons: list[str]) -> None:
    """Turn a form's folder into a copy of the job's, with the form's pictures and `characters`. BadInput."""
    uploads.name_files(form)
    kept = [path for name, path in job.inputs.items() if name not in PICTURES]
    pictures = {name: form.files[name] for name in PICTURES if name in form.files}
    if "reference" not in pictures:
        kept.append(job.inputs["reference"])
        pictures = {"reference": job.inputs["reference"]} | pictures
    for path in (*kept, job.folder / UPLOADED):
        link_or_copy(path, form.folder / path.name)
    file = job.file.model_dump(mode="json", exclude_defaults=True) | {
        "mode": "replace",
        "characters": uploads.characters_of(pictures, persons),
        "preprocess": {name: value for name, value in job.file.preprocess.items() if name != "person"},
    }
    (form.folder / JOB_FILE).write_text(yaml.safe_dump(file, allow_unicode=True, sort_keys=False), "utf-8")


def link_or_copy(path: Path, target: Path) -> None:
    """Make a hard link, or a copy where the file system has no hard links."""
    try:
        os.link(path, target)
    except OSError:
        shutil.copy2(path, target)
