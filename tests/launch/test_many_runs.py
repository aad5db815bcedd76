"""Eight Dagster runs at once on two devices: `pytest -m heavy tests/launch/test_many_runs.py`."""

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import dagster as dg
import pytest

HERE = Path(__file__).parent
DEFINITIONS = HERE / "stand_in_definitions.py"


@pytest.mark.heavy
def test_at_most_two_runs_work_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("STAND_IN_FOLDER", str(tmp_path))
    monkeypatch.setenv("STAND_IN_SLOTS", "2")
    monkeypatch.setenv("WAN_GPUS_LEASE_FOLDER", str(tmp_path / "leases"))
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    home = tmp_path / "home"
    home.mkdir()
    (home / "dagster.yaml").write_text("telemetry: {enabled: false}")
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    # Creates its databases: several runs that open it at once cannot.
    dg.DagsterInstance.from_config(str(home)).dispose()
    command = [sys.executable, "-m", "dagster", "asset", "materialize", "-f", str(DEFINITIONS), "--select", "launched"]
    runs = []
    for number in range(8):
        log = (tmp_path / f"log-{number}").open("w")
        environment = {**os.environ, "STAND_IN_JOBS": f"clock-{number}"}
        runs.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
    assert [run.wait(timeout=600) for run in runs] == [0] * 8

    spans = {
        file.name: [float(time) for time in file.read_text().split()[1:]] for file in tmp_path.glob("clock-*.times")
    }
    devices = {file.name: file.read_text().split()[0] for file in tmp_path.glob("clock-*.times")}
    assert len(spans) == 8 and set(devices.values()) == {"cpu-0", "cpu-1"}
    for device in ("cpu-0", "cpu-1"):
        times = sorted(span for name, span in spans.items() if devices[name] == device)
        assert all(ended <= begun for (_, ended), (begun, _) in pairwise(times)), "one at a time on each device"
    logs = [(tmp_path / f"log-{number}").read_text() for number in range(8)]
    assert sum("Waits for 1 of cpu-0, cpu-1: " in log for log in logs) >= 4
