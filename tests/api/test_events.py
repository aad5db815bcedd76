"""Event streams of a real server. The test client of this process would wait for the end of a stream."""

import json
import threading
from collections.abc import Iterator

import dagster as dg
import httpx
import pytest
from api_server import JOBS, free_port, serving


@pytest.fixture(scope="module")
def url(project) -> Iterator[str]:
    with serving(project, free_port(), WAN_API_MAX_STREAMS="1") as url:
        yield url


def jobs_of(lines: Iterator[str]) -> Iterator[dict]:
    return (json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: "))


def test_a_stream_follows_a_job_to_its_end(url, add_job, report_event):
    httpx.post(url + JOBS, json={"src_root_path": f"data/jobs/{add_job('live')}"}, timeout=60).raise_for_status()
    with httpx.stream("GET", f"{url}{JOBS}/live/events", timeout=60) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        jobs = jobs_of(stream.iter_lines())
        assert next(jobs)["status"] == "queued"
        busy = httpx.get(f"{url}{JOBS}/live/events", timeout=60)
        assert busy.status_code == 429 and busy.headers["retry-after"]
        report_event("live", dg.DagsterEventType.RUN_START)
        assert next(jobs)["status"] == "running"
        report_event("live", dg.DagsterEventType.RUN_CANCELED)
        assert next(jobs)["status"] == "cancelled"
        assert next(jobs, None) is None


def test_open_streams_do_not_keep_a_server_running(project, add_job):
    followed = threading.Event()

    def follow() -> None:
        with httpx.stream("GET", f"{url}{JOBS}/open/events", timeout=60) as stream:
            for _ in stream.iter_lines():
                followed.set()

    # On exit, the server is told to stop, and the test waits for its end.
    with serving(project, free_port()) as url:
        httpx.post(url + JOBS, json={"src_root_path": f"data/jobs/{add_job('open')}"}, timeout=60).raise_for_status()
        thread = threading.Thread(target=follow)
        thread.start()
        assert followed.wait(30)
    thread.join(10)
    assert not thread.is_alive()
