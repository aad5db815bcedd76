"""Ended jobs are posted to their webhooks, until a receiver accepts them."""

import base64
import hashlib
import hmac
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import dagster as dg
import pytest
from api_server import JOBS, running

from wan_orchestration.api import webhooks
from wan_orchestration.settings.service import ApiSettings

SECRET = "a-secret-of-some-length"


class Receiver(ThreadingHTTPServer):
    """Answers the first request with 500, later ones with 204, and stores all requests."""

    def __init__(self) -> None:
        received = self.received = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                received.append((dict(self.headers), body))
                self.send_response(500 if len(received) == 1 else 204)
                self.end_headers()

            def log_message(self, *_) -> None:
                return

        super().__init__(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self.server_port}"


@pytest.fixture
def receiver():
    with Receiver() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def until(condition) -> None:
    for _ in range(200):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError("the condition was not met in time")


def test_a_failed_webhook_is_retried(project, add_job, report_event, instance, receiver, monkeypatch):
    monkeypatch.setattr(webhooks, "POLL_SECONDS", 0.1)
    monkeypatch.setattr(webhooks, "RETRY_DELAYS", (0.1,) * 3)
    settings = ApiSettings(webhook_hosts=[receiver.address], webhook_secret=SECRET)
    body = {"src_root_path": f"data/jobs/{add_job('hooked')}", "webhook_url": f"http://{receiver.address}/done?x=1"}

    def tags() -> dict:
        return instance.get_runs(dg.RunsFilter(tags={"dagster/partition": "hooked"}))[0].tags

    with running(settings) as api:
        assert api.post(JOBS, json=body).status_code == 202
        time.sleep(0.5)
        assert not receiver.received
        report_event("hooked", dg.DagsterEventType.RUN_CANCELED)
        until(lambda: len(receiver.received) == 1)
    # The server restarts.
    with running(settings):
        until(lambda: tags()[webhooks.STATE] == "sent")
        time.sleep(0.5)
    assert len(receiver.received) == 2, "sent once more, and then never again"
    for headers, sent in receiver.received:
        assert json.loads(sent)["status"] == "cancelled"
        content = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + sent
        expected = base64.b64encode(hmac.digest(SECRET.encode(), content, hashlib.sha256)).decode()
        assert headers["webhook-signature"] == f"v1,{expected}"
    assert len({headers["webhook-id"] for headers, _ in receiver.received}) == 1


def test_a_job_that_is_ready_is_posted(project, add_job, report_event, receiver, monkeypatch):
    monkeypatch.setattr(webhooks, "POLL_SECONDS", 0.1)
    url = f"http://{receiver.address}/done"
    with running(ApiSettings(webhook_hosts=[receiver.address], webhook_secret=SECRET)) as api:
        body = {"src_root_path": f"data/jobs/{add_job('viewed')}", "webhook_url": url, "review": True}
        assert api.post(JOBS, json=body).status_code == 202
        report_event("viewed", dg.DagsterEventType.RUN_START)
        report_event("viewed", dg.DagsterEventType.RUN_SUCCESS)
        until(lambda: receiver.received)
    assert json.loads(receiver.received[0][1])["status"] == "ready"


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1/", "http://elsewhere.example/", "ftp://hooks.example/", "file:///x"]
)
def test_other_hosts_are_refused(project, add_job, url):
    if not (project / "data" / "jobs" / "quiet").exists():
        add_job("quiet")
    with running(ApiSettings(webhook_hosts=["hooks.example"], webhook_secret=SECRET)) as api:
        answer = api.post(JOBS, json={"src_root_path": "data/jobs/quiet", "webhook_url": url})
        assert answer.status_code == 422 and answer.json()["errors"][0]["field"] == "webhook_url"
