"""Jobs that wait for a look at their clips: shows the clips, makes them again, starts the video."""

from pathlib import Path

from wan_orchestration.api.clips import ClipsFile, blocked, clips_info, find_clips
from wan_orchestration.api.job_info import PATH, can_start, given_settings, job_status, open_folder, priority
from wan_orchestration.api.jobs import Jobs
from wan_orchestration.api.models import ClipsInfo, JobInfo, NewClips, Start, Status
from wan_orchestration.api.paths import check_loras
from wan_orchestration.api.problems import Problem
from wan_orchestration.api.submissions import DECODING, NewRun, Submissions, digest
from wan_orchestration.api.webhooks import URL
from wan_orchestration.defs.freshness import clips_are_fresh, latest
from wan_orchestration.defs.jobs.run_requests import CLIPS
from wan_orchestration.defs.jobs.versions import JobVersion
from wan_orchestration.errors import BadInput
from wan_orchestration.jobs.clips import check_clips
from wan_orchestration.jobs.folder import Job
from wan_orchestration.settings.environment import Environment
from wan_orchestration.settings.generate import GenerateSettings


class Reviews:
    """Acts on the clips of jobs."""

    def __init__(self, jobs: Jobs, submissions: Submissions, env: Environment) -> None:
        self.jobs, self.submissions, self.env, self.instance = jobs, submissions, env, jobs.instance

    def clips(self, key: str) -> ClipsInfo:
        """What a client needs to look at the clips. Problem 404; BadInput: they are damaged."""
        record = self.jobs.existing(key)
        folder = find_clips(self.env, key, job_status(self.instance, key, record))
        job = open_folder(self.env, key)
        if job is None:
            raise Problem(404, f"the folder of job {key} cannot be used any more")
        settings = job.generate_settings(**given_settings(record.dagster_run)["generate"])
        return clips_info(self.env, job, folder, settings, f"{PATH}/{key}/clips")

    def file(self, key: str, name: ClipsFile) -> Path:
        """A file of the clips, in a format that browsers show. Problem 404; BadInput: it is damaged."""
        status = job_status(self.instance, key, self.jobs.existing(key))
        path = find_clips(self.env, key, status).for_browsers(name)
        if path is None:
            raise Problem(404, f"job {key} has no {name}")
        return path

    def make_again(self, key: str, request: NewClips, idempotency_key: str | None) -> JobInfo:
        """Start a run that makes the clips again and stops. Problem 404, 409; BadInput."""
        run, job = self.jobs.existing(key).dagster_run, Job.open(self.env.jobs_root / key)
        if job.kind == "clips":
            raise BadInput(f"preprocess: job {key} holds ready clips; such settings are for a driving video")
        generate, preprocess = given_settings(run)["generate"], request.preprocess.model_dump(exclude_none=True)
        if "mode" in generate:
            preprocess["mode"] = generate["mode"]
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

    def start(self, key: str, request: Start, idempotency_key: str | None) -> JobInfo:
        """Start the video of the clips as they are, with the settings of the earlier requests and these.

        Problem 404; 409: the job is not ready, its folder has changed, or its clips are blocked. BadInput.
        """
        run, job = self.jobs.existing(key).dagster_run, Job.open(self.env.jobs_root / key)
        version, given, wanted = JobVersion.of(job), given_settings(run), request.model_dump(exclude_none=True)
        check_loras(wanted, self.env)
        generate = given["generate"] | wanted
        settings = job.generate_settings(**generate)
        if not self._not_startable(key):
            self._check_clips(job, version, settings)
        new_run = NewRun(
            job=version,
            digest=digest([key, "start", generate]),
            makes="video",
            generate=generate,
            preprocess=given["preprocess"],
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
        return None if can_start(status, record.dagster_run) else status

    def _check_clips(self, job: Job, version: JobVersion, settings: GenerateSettings) -> None:
        """Check that a video can be made of the clips as they are. Problem 404, 409; BadInput."""
        folder = find_clips(self.env, job.key, "ready")
        last = latest(self.instance, CLIPS.to_user_string(), job.key)
        if last is None or not clips_are_fresh(last.tags, version):
            raise Problem(409, f"the folder of job {job.key} has changed since its clips were made; make them again")
        if reason := blocked(job, folder):
            raise Problem(409, reason)
        with DECODING:
            check_clips(folder.path, settings.mode, settings.refert_num)
