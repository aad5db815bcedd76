"""Any process is killed during a segment: no process is left, the devices are free, and another run resumes.

Real runs with the real engine: `pytest -m heavy tests/launch/test_kill_matrix.py`.
"""

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import psutil
import pytest

from wan_orchestration.protocol import leases

pytestmark = pytest.mark.heavy

ROOT = Path(__file__).parents[2]
GONE_SECONDS = 15
"""Longest time until everything is gone, on any machine."""
SEGMENTS = 4
SETTINGS = {"ops": {"generated_video": {"config": {"clip_len": 5, "sampling_steps": 12}}}}


@pytest.fixture
def project(tmp_path, make_job, tiny_snapshot, monkeypatch) -> Path:
    """A data root with a job of four segments, its clips in their place, and an instance."""
    make_job("dance", frames=17)
    home = tmp_path / "dagster_home"
    home.mkdir()
    (home / "dagster.yaml").write_text((ROOT / "dagster_home" / "dagster.yaml").read_text())
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    monkeypatch.setenv("WAN_DATA_ROOT", str(tmp_path))
    monkeypatch.setenv("WAN_CHECKPOINT_DIR", str(tiny_snapshot))
    monkeypatch.setenv("WAN_TORCHRUN_GRACE_SECONDS", "3")
    monkeypatch.setenv("WAN_GPUS_LEASE_FOLDER", str(tmp_path / "leases"))
    with dg.DagsterInstance.from_config(str(home)) as instance:
        instance.add_dynamic_partitions("jobs", ["dance"])
    with step(tmp_path, "preprocessed_clips") as process:
        assert process.wait() == 0, (tmp_path / "log").read_text()
    return tmp_path


@contextmanager
def step(folder: Path, asset: str = "generated_video") -> Iterator[subprocess.Popen]:
    """`dagster asset materialize`: with the in-process executor the run worker is the step as well."""
    command = [sys.executable, "-m", "dagster", "asset", "materialize", "-m", "wan_orchestration.definitions"]
    command += ["--select", asset, "--partition", "dance"]
    command += ["--config-json", json.dumps(SETTINGS)] if asset == "generated_video" else []
    with (folder / "log").open("a") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def tree(process: psutil.Process) -> list[psutil.Process]:
    """The step, the keeper of its launch, torchrun, and the rank that generates the video."""
    (keeper,) = [child for child in process.children() if "wan_orchestration.launch.keeper" in child.cmdline()]
    (agent,) = keeper.children()
    (rank,) = agent.children()
    return [process, keeper, agent, rank]


def segments_finished(project: Path) -> int:
    try:
        return len(json.loads((project / "videos" / "dance" / ".work" / "state.json").read_text())["clips"])
    except FileNotFoundError:
        return 0


def wait_until(what: Callable[[], object], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def is_free(project: Path) -> bool:
    def refuse(message: str):
        raise TimeoutError(message)

    try:
        with leases.lease(project / "leases", ["cpu-0"], 1, "test", refuse):
            return True
    except TimeoutError:
        return False


def nothing_left(processes: list[psutil.Process]) -> bool:
    return not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes)


def video(project: Path) -> tuple[bytes, int]:
    """The finished video, and how many of its segments come from an earlier try."""
    folder = project / "videos" / "dance"
    result = json.loads((folder / "result.json").read_text())
    assert result["clips"] == SEGMENTS
    return (folder / "video.mp4").read_bytes(), result["resumed_clips"]


@dataclass(frozen=True)
class Unbroken:
    """The video of an undisturbed run."""

    video: bytes
    seconds: float
    """Duration of such a run on this machine."""

    @property
    def patience(self) -> float:
        """Seconds after which a part of such a run counts as missing."""
        return 3 * self.seconds


@pytest.fixture
def unbroken(project) -> Unbroken:
    started = time.monotonic()
    with step(project) as process:
        assert process.wait() == 0, (project / "log").read_text()
    seconds = time.monotonic() - started
    made, resumed = video(project)
    assert resumed == 0
    (project / "videos" / "dance" / "video.mp4").unlink()
    return Unbroken(made, seconds)


STEP, KEEPER, AGENT, RANK = range(4)


@pytest.mark.parametrize(
    "number, whom",
    [(signal.SIGTERM, STEP), (signal.SIGINT, STEP), (signal.SIGKILL, STEP)],
    ids=["cancel", "ctrl-c", "kill-step"],
)
def test_killing_the_step(project, unbroken, number, whom):
    with step(project) as process:
        wait_until(lambda: segments_finished(project) >= 1, unbroken.patience)
        processes = tree(psutil.Process(process.pid))
        assert not is_free(project)
        processes[whom].send_signal(number)
        wait_until(lambda: nothing_left(processes), GONE_SECONDS)
        assert process.wait() != 0
    wait_until(lambda: is_free(project), GONE_SECONDS)
    assert 1 <= segments_finished(project) < SEGMENTS
    with step(project) as process:
        assert process.wait() == 0, (project / "log").read_text()
    made, resumed = video(project)
    assert made == unbroken.video and resumed >= 1


@pytest.mark.parametrize("whom", [KEEPER, AGENT, RANK], ids=["kill-keeper", "kill-agent", "kill-rank"])
def test_killing_what_the_step_launched(project, unbroken, whom):
    """The step itself retries, and resumes after the last finished segment."""
    with step(project) as process:
        wait_until(lambda: segments_finished(project) >= 1, unbroken.patience)
        processes = tree(psutil.Process(process.pid))
        processes[whom].kill()
        wait_until(lambda: nothing_left(processes[KEEPER:]), GONE_SECONDS)
        assert process.wait() == 0, (project / "log").read_text()
    assert "The job is launched again; its finished segments are kept." in (project / "log").read_text()
    wait_until(lambda: is_free(project), GONE_SECONDS)
    made, resumed = video(project)
    assert made == unbroken.video and resumed >= 1


def test_a_rank_that_hangs(project, unbroken, monkeypatch):
    # Longer than a healthy worker is silent while it starts.
    stall_seconds = round(unbroken.seconds)
    monkeypatch.setenv("WAN_TORCHRUN_STALL_TIMEOUT_SECONDS", str(stall_seconds))
    with step(project) as process:
        wait_until(lambda: segments_finished(project) >= 1, unbroken.patience)
        processes = tree(psutil.Process(process.pid))
        # A suspended process cannot write its stacks. In tests/launch/test_torchrun.py one does.
        processes[RANK].suspend()
        wait_until(lambda: nothing_left(processes[KEEPER:]), stall_seconds + GONE_SECONDS)
        assert process.wait() != 0
    assert f"The worker hung: dance made no progress for {stall_seconds} s" in (project / "log").read_text()
    wait_until(lambda: is_free(project), GONE_SECONDS)
    with step(project) as process:
        assert process.wait() == 0, (project / "log").read_text()
    made, resumed = video(project)
    assert made == unbroken.video and resumed >= 1


def test_a_rank_without_memory(project, unbroken):
    with step(project) as process:
        wait_until(lambda: segments_finished(project) >= 1, unbroken.patience)
        processes = tree(psutil.Process(process.pid))
        used = processes[RANK].memory_info().vms
        processes[RANK].rlimit(resource.RLIMIT_AS, (used, used))
        assert process.wait() != 0
    assert "out of memory" in (project / "log").read_text()
    assert nothing_left(processes)
    wait_until(lambda: is_free(project), GONE_SECONDS)
    with step(project) as process:
        assert process.wait() == 0, (project / "log").read_text()
    made, resumed = video(project)
    assert made == unbroken.video and resumed >= 1


LAUNCH = """
mutation ($parameters: ExecutionParams!) {
  launchPipelineExecution(executionParams: $parameters) {
    __typename ... on LaunchRunSuccess { run { id } } ... on PythonError { message }
  }
}
"""
TERMINATE = "mutation ($run: String!) { terminateRun(runId: $run) { __typename } }"


@contextmanager
def dagster_dev(folder: Path, patience: float) -> Iterator[Callable[..., dict]]:
    """A real `dagster dev` that is up within `patience` seconds. Yields a function that queries its webserver."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "dagster", "dev", "-h", "127.0.0.1", "-p", str(port)]
    with (folder / "dev.log").open("w") as log:
        server = subprocess.Popen([*command, "-w", "workspace.yaml"], stdout=log, stderr=log, cwd=ROOT)

    def query(text: str, **variables: object) -> dict:
        body = json.dumps({"query": text, "variables": variables}).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{port}/graphql", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["data"]

    def up() -> bool:
        try:
            return bool(query("{ version }"))
        except OSError:
            return False

    try:
        wait_until(up, patience)
        yield query
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(patience)


def test_cancel_in_the_ui(project, unbroken):
    with (
        dagster_dev(project, unbroken.patience) as query,
        dg.DagsterInstance.from_config(os.environ["DAGSTER_HOME"]) as instance,
    ):
        parameters = {
            "selector": {
                "repositoryLocationName": "wan_orchestration",
                "repositoryName": "__repository__",
                "jobName": "__ASSET_JOB",
                "assetSelection": [{"path": ["generated_video"]}],
                "assetCheckSelection": [],
            },
            "runConfigData": json.dumps(SETTINGS),
            "mode": "default",
            "executionMetadata": {"tags": [{"key": "dagster/partition", "value": "dance"}]},
        }
        run = query(LAUNCH, parameters=parameters)["launchPipelineExecution"]["run"]["id"]
        wait_until(lambda: segments_finished(project) >= 1, unbroken.patience)
        working = [p for p in psutil.process_iter(["cmdline"]) if is_of(p, project)]
        assert working
        query(TERMINATE, run=run)
        wait_until(lambda: nothing_left(working), GONE_SECONDS)
        wait_until(lambda: instance.get_run_by_id(run).status == dg.DagsterRunStatus.CANCELED, unbroken.patience)
    wait_until(lambda: is_free(project), GONE_SECONDS)
    with step(project) as process:
        assert process.wait() == 0, (project / "log").read_text()
    made, resumed = video(project)
    assert made == unbroken.video and resumed >= 1


def is_of(process: psutil.Process, project: Path) -> bool:
    """Whether a process is a worker or its torchrun, launched for this project."""
    try:
        words = " ".join(process.cmdline())
        return "wan_orchestration.worker" in words and process.environ().get("WAN_DATA_ROOT") == str(project)
    except psutil.Error:
        return False
