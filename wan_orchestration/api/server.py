"""What the routes work with: one Dagster instance, one data folder."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Self

import dagster as dg
from prometheus_client import CollectorRegistry, ProcessCollector
from starlette.concurrency import run_in_threadpool

from wan_orchestration.api.events import Events
from wan_orchestration.api.jobs import Jobs
from wan_orchestration.api.metrics import Runs
from wan_orchestration.api.queue import Queue
from wan_orchestration.api.submissions import Submissions
from wan_orchestration.api.uploads import sweep
from wan_orchestration.api.webhooks import Webhooks
from wan_orchestration.errors import BadInput, validate
from wan_orchestration.settings.environment import DagsterHome, Environment, environment
from wan_orchestration.settings.service import ApiSettings


@dataclass
class Server:
    instance: dg.DagsterInstance
    env: Environment
    api: ApiSettings
    jobs: Jobs
    submissions: Submissions
    events: Events
    registry: CollectorRegistry

    @classmethod
    @asynccontextmanager
    async def running(cls, api: ApiSettings) -> AsyncIterator[Self]:
        """Opens the instance of DAGSTER_HOME, and finishes what a server that was killed has begun. BadInput."""
        env, home = environment(), DagsterHome().home.absolute()
        if not (home / "dagster.yaml").is_file():
            raise BadInput(
                f"{home / 'dagster.yaml'}: no such file; start this in the project's root folder, or set DAGSTER_HOME"
            )
        with dg.DagsterInstance.from_config(str(home)) as instance:
            jobs, queue, registry = Jobs(instance, env), Queue(instance, env), CollectorRegistry()
            registry.register(Runs(instance))
            ProcessCollector(registry=registry)
            env.jobs_root.mkdir(parents=True, exist_ok=True)
            await run_in_threadpool(queue.recover)
            await run_in_threadpool(sweep, env.jobs_root)
            webhooks, events = Webhooks(jobs, env, api), Events(jobs, api.max_streams)
            async with webhooks.sending():
                with events.ending_with_the_server():
                    yield cls(
                        instance=instance,
                        env=env,
                        api=api,
                        jobs=jobs,
                        submissions=Submissions(jobs, queue, env, api),
                        events=events,
                        registry=registry,
                    )

    def jobs_folder_usable(self) -> bool:
        return os.access(self.env.jobs_root, os.W_OK | os.X_OK)


def api_settings() -> ApiSettings:
    """From `WAN_API_*`. BadInput."""
    return validate(ApiSettings, {})
