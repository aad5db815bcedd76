"""Reporting a failed run to a local receiver."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import dagster as dg
import pytest

from wan_orchestration.defs import failure_sensor as webhook
from wan_orchestration.defs.failure_sensor import NotDelivered


class Receiver(HTTPServer):
    """Answers with `statuses`, one after the other, and keeps the bodies that it receives."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.statuses, self.bodies = [200], []


class Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        self.server.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(self.server.statuses.pop(0))
        self.end_headers()

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def receiver(monkeypatch) -> Iterator[Receiver]:
    monkeypatch.setattr(webhook.time, "sleep", lambda seconds: None)
    with Receiver() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("WAN_FAILURE_WEBHOOK_URL", f"http://127.0.0.1:{server.server_port}/secret")
        yield server
        server.shutdown()


@dg.op
def fails():
    raise dg.Failure("data/jobs/a/src_pose.mp4: truncated\nand more")


@dg.job
def failing():
    fails()


@pytest.fixture
def report(instance):
    """Lets the sensor report a failed run of the jobs a and b."""
    instance.add_dynamic_partitions("jobs", ["a", "b"])
    tags = {"dagster/asset_partition_range_start": "a", "dagster/asset_partition_range_end": "b"}
    result = failing.execute_in_process(instance=instance, raise_on_error=False, tags=tags)

    def tick() -> str:
        context = dg.build_run_status_sensor_context(
            sensor_name="failure_webhook",
            dagster_instance=instance,
            dagster_run=result.dagster_run,
            dagster_event=result.get_run_failure_event(),
        )
        webhook.failure_webhook(context.for_run_failure())
        return result.run_id

    return tick


def test_a_failed_run_is_reported(report, receiver):
    run_id = report()
    (body,) = receiver.bodies
    assert body["run_id"] == run_id and body["jobs"] == ["a", "b"] and body["event"] == "run_failed"
    assert body["error"].startswith("fails: data/jobs/a/src_pose.mp4: truncated")


def test_posting_is_retried(report, receiver):
    receiver.statuses = [503, 429, 200]
    report()
    assert len(receiver.bodies) == 3


@pytest.mark.parametrize("statuses, tries", [([500] * 4, 4), ([403], 1)])
def test_a_receiver_that_refuses(report, receiver, statuses, tries):
    receiver.statuses = statuses
    with pytest.raises(NotDelivered, match=f"HTTP {statuses[-1]}") as failure:
        report()
    assert len(receiver.bodies) == tries and "secret" not in str(failure.value)


def test_off_by_default(report, receiver, monkeypatch, repository):
    assert repository.get_sensor_def("failure_webhook").default_status == dg.DefaultSensorStatus.STOPPED
    monkeypatch.delenv("WAN_FAILURE_WEBHOOK_URL")
    report()
    assert not receiver.bodies
