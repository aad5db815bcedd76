"""A real `dagster dev` over a drop folder: sensor, queue, runs with the real engine. Minutes: run with -m heavy."""

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
from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import psutil
import pytest

from wan_orchestration.messages import Result

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.heavy


class Deployment:
    """`dagster dev` on an instance and a data root of its own."""

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
    def instance(self) -> dg.DagsterInstance:
        return dg.DagsterInstance.from_config(str(self.home))

    def start(self) -> None:
        command = [sys.executable, "-m", "dagster", "dev", "-p", str(self.port), "-w", str(ROOT / "workspace.yaml")]
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
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/graphql", body, {"Content-Type": "application/json"}
        )
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
        file = self.folder / "data" / "videos" / key / "result.json"
        return Result.model_validate_json(file.read_bytes()) if file.is_file() else None

    def runs(self, key: str) -> list[dg.DagsterRun]:
        return [run for run in self.instance.get_runs() if f"job/{key}" in run.tags]


@pytest.fixture
def deployment(tmp_path, tiny_snapshot) -> Iterator[Deployment]:
    deployment = Deployment(tmp_path, WAN_CHECKPOINT_DIR=str(tiny_snapshot), WAN_DEFAULT_SAMPLING_STEPS="1")
    try:
        yield deployment
    finally:
        deployment.stop()


def slowly(source: Path, target: Path) -> None:
    """Copies a folder as a slow line does, a piece at a time, under rsync's names for what is not whole."""
    target.mkdir()
    for file in sorted(source.iterdir()):
        part = target / f".{file.name}.a1B2c3"
        with part.open("wb") as copy:
            content = file.read_bytes()
            for start in range(0, len(content), len(content) // 4 + 1):
                copy.write(content[start : start + len(content) // 4 + 1])
                copy.flush()
                time.sleep(0.7)
        shutil.copystat(file, part)
        part.rename(target / file.name)


def test_what_is_dropped_becomes_a_video_once_whatever_is_killed(deployment, make_job):
    """Slow copies, jobs that come together, the daemon killed in the middle, a job changed meanwhile."""
    deployment.start()
    jobs = {key: make_job(key, yaml=f"generate: {{seed: {seed}}}") for seed, key in enumerate(("slow", *"abc"))}
    slowly(jobs["slow"], deployment.jobs / "slow")
    copied = time.time()
    (run,) = deployment.wait(lambda: deployment.runs("slow"), 60)
    started = deployment.wait(lambda: deployment.instance.get_run_record_by_id(run.run_id).start_time, 60)
    print(f"The run began {started - copied:.1f} s after the last byte.")

    for key in "abc":
        shutil.copytree(jobs[key], deployment.jobs / key)
    shutil.copytree(jobs["a"], deployment.jobs / "Not A Key")
    deployment.wait(lambda: deployment.runs("c"), 60)
    deployment.daemon().kill()
    deployment.stop()
    (deployment.jobs / "b" / "job.yaml").write_text("generate: {seed: 99}")
    (deployment.jobs / "Not A Key").rename(deployment.jobs / "a-key")
    deployment.start()

    seeds = {"slow": 0, "a": 1, "b": 99, "c": 3, "a-key": 1}

    def all_made() -> bool:
        results = {key: deployment.result(key) for key in seeds}
        made = {key: result.settings.seed for key, result in results.items() if result and result.settings}
        return made == seeds and not any(not run.is_finished for run in deployment.instance.get_runs())

    deployment.wait(all_made, 400)
    time.sleep(12)
    failed = deployment.instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE]))
    reasons = [
        entry.dagster_event.step_failure_data.error_display_string
        for run in failed
        for entry in deployment.instance.all_logs(run.run_id, of_type=dg.DagsterEventType.STEP_FAILURE)
        if entry.dagster_event
    ]
    assert not failed, reasons
    videos = sorted(
        record.partition_key or ""
        for record in deployment.instance.fetch_materializations(dg.AssetKey("generated_video"), limit=99).records
    )
    # The job that was changed may have been made before.
    assert videos in (sorted(seeds), sorted([*seeds, "b"]))
