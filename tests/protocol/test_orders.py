"""A file of orders between steps and rank 0, without Slurm."""

import threading
import time
from pathlib import Path

import pytest

from wan_orchestration.protocol import orders
from wan_orchestration.protocol.orders import OrderFile, OrderLine


@pytest.fixture
def path(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(orders, "POLL_SECONDS", 0.01)
    (tmp_path / "orders.jsonl").touch()
    return tmp_path / "orders.jsonl"


def test_one_order_at_a_time(path):
    line = OrderLine(path, 60)
    first, second = OrderFile(path), OrderFile(path)
    assert first.give(request="a")
    assert not second.give(request="b") and not second.end(), "it works"
    assert line.receive() == {"do": "work", "number": 1, "request": "a"}
    second.cancel(2)
    first.cancel(1)
    assert line.receive() == {"do": "cancel", "number": 1}
    line.send(do="done")
    first.cancel(1)
    assert second.give(request="b") and not first.end(1)
    assert line.receive() == {"do": "work", "number": 2, "request": "b"}
    assert first.end(2)
    line.send(do="done")
    assert line.receive() is None
    assert not first.give(request="c")


def test_half_a_line_is_skipped(path):
    line = OrderLine(path, 60)
    path.write_text('{"do": "work", "num')
    assert OrderFile(path).give(request="a")
    assert line.receive() == {"do": "work", "number": 1, "request": "a"}


def test_idle_time_ends_or_an_order_comes(path):
    """However close the two are, an order that was given is received."""
    for attempt in range(20):
        path.write_text("")
        received = []
        line = OrderLine(path, 0.02)
        thread = threading.Thread(target=lambda line=line, received=received: received.append(line.receive()))
        thread.start()
        time.sleep(0.015 + 0.001 * (attempt % 15))
        given = OrderFile(path).give(request="a")
        thread.join(10)
        assert [bool(message) for message in received] == [given]
