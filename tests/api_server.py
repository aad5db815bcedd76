"""The HTTP API for tests, in this process or as a real server."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
from starlette.testclient import TestClient

from wan_orchestration.api.app import create_app
from wan_orchestration.settings.service import ApiSettings

JOBS = "/animate/jobs"


@contextlib.contextmanager
def running(settings: ApiSettings, url: str = "http://127.0.0.1:8000") -> Iterator[TestClient]:
    """The API in this process, as if clients reached it at this URL."""
    with TestClient(create_app(settings), base_url=url) as client:
        yield client


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


@contextlib.contextmanager
def serving_process(project: Path, port: int, **variables: str) -> Iterator[subprocess.Popen]:
    """A real server on a port, started by `uvicorn wan_orchestration.api:app`."""
    command = [sys.executable, "-m", "uvicorn", "wan_orchestration.api:app", "--port", str(port)]
    process = subprocess.Popen(command, cwd=project, env={**os.environ, **variables}, start_new_session=True)
    try:
        for _ in range(240):
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"http://127.0.0.1:{port}/healthz").is_success:
                    break
            assert process.poll() is None
            time.sleep(0.25)
        yield process
    finally:
        stopped(process)


@contextlib.contextmanager
def serving(project: Path, port: int, **variables: str) -> Iterator[str]:
    """A real server, by its URL."""
    with serving_process(project, port, **variables):
        yield f"http://127.0.0.1:{port}"


def stopped(process: subprocess.Popen) -> None:
    """Ends a process by SIGTERM; fails if it does not end."""
    if process.poll() is None:
        process.terminate()
    process.wait(60)
