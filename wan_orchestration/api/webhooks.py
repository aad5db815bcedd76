"""Posts ended jobs to other servers, in the form of https://www.standardwebhooks.com.

Tags of the job's run hold the URL, the state, the number of tries and the time of the next, so a restart loses nothing.
"""

import asyncio
import base64
import fcntl
import hashlib
import hmac
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import IO

import dagster as dg
import httpx
from pydantic import HttpUrl
from starlette.concurrency import run_in_threadpool

from wan_orchestration.api.jobs import Jobs
from wan_orchestration.api.models import JobInfo
from wan_orchestration.api.problems import FieldProblem, Problem
from wan_orchestration.settings.environment import Environment
from wan_orchestration.settings.service import ApiSettings

URL, STATE, TRIES, NEXT = (f"wan/webhook_{name}" for name in ("url", "state", "tries", "next"))

RETRY_DELAYS = (5, 30, 120, 600, 3600)
"""Seconds before each retry."""

POLL_SECONDS = 2.0
TIMEOUT_SECONDS = 10.0

ENDED = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]

log = logging.getLogger(__name__)


def check_webhook(url: HttpUrl, api: ApiSettings) -> None:
    """Problem 422: webhooks are off, or this host is not allowed."""
    address = f"{url.host}:{url.port}"
    if api.webhook_secret is None or not {url.host, address} & set(api.webhook_hosts):
        detail = f"webhooks to {address} are not allowed; see the server's WAN_API_WEBHOOK_HOSTS and _SECRET"
        raise Problem(422, f"webhook_url: {detail}", [FieldProblem(field="webhook_url", detail=detail)])


def webhook_tags(url: str) -> dict[str, str]:
    """Tags of a run whose end is posted to this URL."""
    return {URL: url, STATE: "pending"}


def sign(secret: str, message_id: str, timestamp: int, body: bytes) -> str:
    """The `webhook-signature` header: the version, then the HMAC-SHA256 of `id.timestamp.body` in base64."""
    content = f"{message_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.digest(secret.encode(), content, hashlib.sha256)).decode()


class Webhooks:
    """Sends due webhooks. Only one of the servers of a data folder does so at a time."""

    def __init__(self, jobs: Jobs, env: Environment, api: ApiSettings) -> None:
        self.jobs, self.env, self.api = jobs, env, api

    @asynccontextmanager
    async def sending(self) -> AsyncIterator[None]:
        """Sends webhooks during the block; does nothing if webhooks are off."""
        if self.api.webhook_secret is None:
            yield
            return
        task = asyncio.create_task(self._run())
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _run(self) -> None:
        with (self.env.data_root / ".webhooks.lock").open("w") as lock:
            # No redirects: they could lead to hosts that are not allowed.
            async with httpx.AsyncClient(timeout=TIMEOUT_SECONDS, follow_redirects=False, trust_env=False) as client:
                while True:
                    await asyncio.sleep(POLL_SECONDS)
                    try:
                        if _try_lock(lock):
                            await self._send_due(client)
                    except Exception:
                        log.exception("webhooks could not be sent; retrying")

    async def _send_due(self, client: httpx.AsyncClient) -> None:
        due = await run_in_threadpool(self._due)
        await asyncio.gather(*(self._send(client, run, job) for run, job in due))

    def _due(self) -> list[tuple[dg.DagsterRun, JobInfo]]:
        instance, due = self.jobs.instance, []
        for run in instance.get_runs(dg.RunsFilter(statuses=ENDED, tags={STATE: "pending"}), limit=50):
            key = run.tags["dagster/partition"]
            record = self.jobs.record(key)
            if record is None or record.dagster_run.run_id != run.run_id:
                # The job was purged, or has a newer run. If that is a retry, it has these tags too.
                instance.add_run_tags(run.run_id, {STATE: "superseded"})
            elif not run.is_complete_and_waiting_to_retry and float(run.tags.get(NEXT, 0)) <= time.time():
                due.append((run, self.jobs.get(key)))
        return due

    async def _send(self, client: httpx.AsyncClient, run: dg.DagsterRun, job: JobInfo) -> None:
        assert self.api.webhook_secret is not None
        url, body, now = run.tags[URL], job.model_dump_json().encode(), int(time.time())
        signature = sign(self.api.webhook_secret.get_secret_value(), run.run_id, now, body)
        headers = {
            "content-type": "application/json",
            "webhook-id": run.run_id,
            "webhook-timestamp": str(now),
            "webhook-signature": signature,
        }
        try:
            check_webhook(HttpUrl(url), self.api)
            async with client.stream("POST", url, content=body, headers=headers) as response:
                failure = None if response.is_success else f"status {response.status_code}"
        except (httpx.HTTPError, Problem) as error:
            failure = str(error) or type(error).__name__
        await run_in_threadpool(self._record_try, run, failure)

    def _record_try(self, run: dg.DagsterRun, failure: str | None) -> None:
        tries = int(run.tags.get(TRIES, 0)) + 1
        tags = {TRIES: str(tries), STATE: "sent"}
        if failure is not None:
            log.warning("webhook of run %s failed at try %d: %s", run.run_id, tries, failure)
            retry = tries <= len(RETRY_DELAYS)
            tags[STATE] = "pending" if retry else "failed"
            tags[NEXT] = f"{time.time() + RETRY_DELAYS[min(tries, len(RETRY_DELAYS)) - 1]:.0f}"
        self.jobs.instance.add_run_tags(run.run_id, tags)


def _try_lock(lock: IO[str]) -> bool:
    """Lock the file, unless this process holds the lock already. False: another process holds it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
