"""Follows a job by server-sent events."""

import asyncio
import json
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from types import FrameType

from starlette.concurrency import run_in_threadpool

from wan_orchestration.api.jobs import Jobs
from wan_orchestration.api.models import FINISHED, Job
from wan_orchestration.api.problems import Problem

LOOK_SECONDS = 1.0
QUIET_SECONDS = 15.0
"""After so long without an event a comment is sent, so that nothing on the way closes the connection."""


class Events:
    """The streams of one server."""

    def __init__(self, jobs: Jobs, most: int) -> None:
        self.jobs, self.most, self.open = jobs, most, 0
        self.closing = False

    @contextmanager
    def ending_with_the_server(self) -> Iterator[None]:
        """On the signals that end the server streams end too: it waits for its connections to be closed."""
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

    async def begin(self, key: str) -> AsyncIterator[str]:
        """The lines of a stream. Problem 404: no such job; 429: too many streams."""
        if self.open >= self.most:
            raise Problem(429, f"{self.most} connections follow jobs already", headers={"Retry-After": "10"})
        return self._follow(key, await run_in_threadpool(self.jobs.get, key))

    async def _follow(self, key: str, job: Job) -> AsyncIterator[str]:
        self.open += 1
        try:
            shown, quiet = None, 0.0
            yield "retry: 3000\n\n"
            while not self.closing:
                if job != shown:
                    yield f"event: job\ndata: {job.model_dump_json()}\n\n"
                    shown, quiet = job, 0.0
                elif quiet >= QUIET_SECONDS:
                    yield ": still here\n\n"
                    quiet = 0.0
                if job.status in FINISHED:
                    return
                await asyncio.sleep(LOOK_SECONDS)
                quiet += LOOK_SECONDS
                try:
                    job = await run_in_threadpool(self.jobs.get, key)
                except Problem as problem:
                    yield f"event: gone\ndata: {json.dumps({'detail': problem.detail})}\n\n"
                    return
        finally:
            self.open -= 1
