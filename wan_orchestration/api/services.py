"""The objects that the routes share: the Dagster instance, the jobs of a data folder, submissions, metrics."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Self

import dagster as dg
from prometheus_client import CollectorRegistry, ProcessCollector
from starlette.concurrency import run_in_threadpool

from wan_orchestration.api.events import EventStreams
from wan_orchestration.api.jobs import Jobs
from wan_orchestration.api.metrics import RunMetrics
from wan_orchestration.api.queue import RunQueue
from wan_orchestration.api.review import Reviews
from wan_orchestration.api.submissions import Submissions
from wan_orchestration.api.uploads import remove_abandoned
from wan_orchestration.api.webhooks import Webhooks
from wan_orchestration.errors import BadInput, validate
from wan_orchestration.settings.environment import DagsterHome, Environment, environment
from wan_orchestration.settings.service import ApiSettings


@dataclass
class Services:
    instance: dg.DagsterInstance
    env: Environment
    api: ApiSettings
    jobs: Jobs
    submissions: Submissions
    reviews: Reviews
    events: EventStreams
    registry: CollectorRegistry

    @classmethod
    @asynccontextmanager
    async def running(cls, api: ApiSettings) -> AsyncIterator[Self]:
        """Opens the instance in DAGSTER_HOME, and cleans up after a killed server. BadInput: there is no instance."""
        env, home = environment(), DagsterHome().home.absolute()
        if not (home / "dagster.yaml").is_file():
            raise BadInput(
                f"{home / 'dagster.yaml'}: no such file; start this in the project's root folder, or set DAGSTER_HOME"
            )
        with dg.DagsterInstance.from_config(str(home)) as instance:
            jobs, queue, registry = Jobs(instance, env), RunQueue(instance, env), CollectorRegistry()
            registry.register(RunMetrics(instance))
            ProcessCollector(registry=registry)
            env.jobs_root.mkdir(parents=True, exist_ok=True)
            await run_in_threadpool(queue.recover)
            await run_in_threadpool(remove_abandoned, env.jobs_root)
            submissions = Submissions(jobs, queue, env, api)
            webhooks, events = Webhooks(jobs, env, api), EventStreams(jobs, api.max_streams)
            async with webhooks.sending():
                with events.closed_on_shutdown():
                    yield cls(
                        instance=instance,
                        env=env,
                        api=api,
                        jobs=jobs,
                        submissions=submissions,
                        reviews=Reviews(jobs, submissions, env),
                        events=events,
                        registry=registry,
                    )

    def jobs_folder_is_writable(self) -> bool:
        return os.access(self.env.jobs_root, os.W_OK | os.X_OK)


def api_settings() -> ApiSettings:
    """Settings from `WAN_API_*`. BadInput: a variable has a bad value."""
    return validate(ApiSettings, {})
