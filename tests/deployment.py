"""A real `dagster dev` for tests, on an instance and a data root of its own."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import psutil

from wan_orchestration.protocol.messages import Result

ROOT = Path(__file__).parents[1]


class Deployment:
    """`dagster dev` on an instance and a data root of its own."""

    workspace = ROOT / "workspace.yaml"

    def __init__(self, folder: Path, **variables: str) -> None:
        self.folder, self.home, self.jobs = folder, folder / "dagster_home", folder / "data" / "jobs"
        self.home.mkdir()
        self.jobs.mkdir(parents=True)
        shutil.copy(ROOT / "dagster_home" / "dagster.yaml", self.home)
        self.environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("WAN_", "DAGSTER_"))
        }
        self.environment |= {
            "DAGSTER_HOME": str(self.home),
            "WAN_DATA_ROOT": str(folder / "data"),
            "WAN_DROP_SETTLE_SECONDS": "3",
            "OMP_NUM_THREADS": "1",
            **variables,
        }
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        self.process: subprocess.Popen | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def instance(self) -> dg.DagsterInstance:
        return dg.DagsterInstance.from_config(str(self.home))

    def start(self) -> None:
        command = [sys.executable, "-m", "dagster", "dev", "-p", str(self.port), "-w", str(self.workspace)]
        with (self.folder / "dagster.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, env=self.environment, cwd=self.folder, stdout=log, stderr=subprocess.STDOUT
            )
        self.wait(lambda: self.ask("{ version }"), 120)

    def stop(self) -> None:
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(60)

    def daemon(self) -> psutil.Process:
        assert self.process
        children = psutil.Process(self.process.pid).children(recursive=True)
        (daemon,) = [child for child in children if "dagster._daemon" in child.cmdline()]
        return daemon

    def ask(self, query: str) -> dict | None:
        body = json.dumps({"query": query}).encode()
        request = urllib.request.Request(f"{self.url}/graphql", body, {"Content-Type": "application/json"})
        with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["data"]
        return None

    def wait(self, until: Callable[[], object], seconds: float) -> object:
        end = time.monotonic() + seconds
        while not (found := until()):
            assert self.process and self.process.poll() is None, "dagster dev has ended"
            assert time.monotonic() < end, (self.folder / "dagster.log").read_text()[-6000:]
            time.sleep(0.2)
        return found

    def result(self, key: str) -> Result | None:
        return Result.read(self.folder / "data" / "videos" / key / "result.json")

    def runs(self, key: str) -> list[dg.DagsterRun]:
        return [run for run in self.instance.get_runs() if f"job/{key}" in run.tags]
