"""Streams a job's changes as server-sent events."""

import asyncio
import json
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from types import FrameType

from starlette.concurrency import run_in_threadpool

from wan_orchestration.api.jobs import Jobs
from wan_orchestration.api.models import FINISHED, JobInfo
from wan_orchestration.api.problems import Problem

POLL_SECONDS = 1.0
KEEPALIVE_SECONDS = 15.0
"""After so long without an event, a comment keeps proxies from closing the connection."""


class EventStreams:
    """The open event streams of this server."""

    def __init__(self, jobs: Jobs, limit: int) -> None:
        self.jobs, self.limit, self.open_streams = jobs, limit, 0
        self.closing = False

    @contextmanager
    def closed_on_shutdown(self) -> Iterator[None]:
        """Ends all streams on SIGINT and SIGTERM, because the server waits for its connections before it ends."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

        def close(number: int, frame: FrameType | None) -> None:
            self.closing = True
            if callable(handler := handlers[signal.Signals(number)]):
                handler(number, frame)

        for number in handlers:
            signal.signal(number, close)
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    async def open(self, key: str) -> AsyncIterator[str]:
        """The lines of a new stream. Problem 404: no such job; 429: too many streams."""
        if self.open_streams >= self.limit:
            raise Problem(429, f"{self.limit} event streams are open already", headers={"Retry-After": "10"})
        return self._stream(key, await run_in_threadpool(self.jobs.get, key))

    async def _stream(self, key: str, job: JobInfo) -> AsyncIterator[str]:
        self.open_streams += 1
        try:
            sent, silence = None, 0.0
            yield "retry: 3000\n\n"
            while not self.closing:
                if job != sent:
                    yield f"event: job\ndata: {job.model_dump_json()}\n\n"
                    sent, silence = job, 0.0
                elif silence >= KEEPALIVE_SECONDS:
                    yield ": still here\n\n"
                    silence = 0.0
                if job.status in FINISHED:
                    return
                await asyncio.sleep(POLL_SECONDS)
                silence += POLL_SECONDS
                try:
                    job = await run_in_threadpool(self.jobs.get, key)
                except Problem as problem:
                    yield f"event: gone\ndata: {json.dumps({'detail': problem.detail})}\n\n"
                    return
        finally:
            self.open_streams -= 1
