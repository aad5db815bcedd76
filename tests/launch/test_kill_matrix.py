"""Whatever is killed while a clip is made: nothing is left, the devices are free, and another run goes on from there.

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
"""What is promised, on any machine."""
CLIPS = 4
SETTINGS = {"ops": {"generated_video": {"config": {"clip_len": 5, "sampling_steps": 12}}}}


@pytest.fixture
def project(tmp_path, make_job, tiny_snapshot, monkeypatch) -> Path:
    """A data root with a job of four clips, an instance, and clips in their place."""
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
    """The step, torchrun, and the rank that makes the video."""
    (agent,) = [child for child in process.children() if "torch.distributed.run" in " ".join(child.cmdline())]
    (rank,) = agent.children()
    return [process, agent, rank]


def clips_finished(project: Path) -> int:
    try:
        return len(json.loads((project / "videos" / "dance" / ".work" / "state.json").read_text())["clips"])
    except FileNotFoundError:
        return 0


def wait_until(what: Callable[[], object], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.05)


def is_free(project: Path) -> bool:
    def refuse(news: str):
        raise TimeoutError(news)

    try:
        with leases.lease(project / "leases", ["cpu-0"], 1, "test", refuse):
            return True
    except TimeoutError:
        return False


def nothing_left(processes: list[psutil.Process]) -> bool:
    return not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes)


def video(project: Path) -> tuple[bytes, int]:
    """The finished video, and how many of its clips were taken over from an earlier try."""
    folder = project / "videos" / "dance"
    result = json.loads((folder / "result.json").read_text())
    assert result["clips"] == CLIPS
    return (folder / "video.mp4").read_bytes(), result["resumed_clips"]


@dataclass(frozen=True)
class Unbroken:
    """The video as a run makes it that nobody disturbs."""

    video: bytes
    seconds: float
    """What such a run takes on this machine, from its start to its end."""

    @property
    def patience(self) -> float:
        """Seconds after which something that is a part of such a run will not come any more."""
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


STEP, AGENT, RANK = range(3)


@pytest.mark.parametrize(
    "number, whom",
    [(signal.SIGTERM, STEP), (signal.SIGINT, STEP), (signal.SIGKILL, STEP)],
    ids=["cancel", "ctrl-c", "kill-step"],
)
def test_the_end_of_the_step(project, unbroken, number, whom):
    with step(project) as process:
        wait_until(lambda: clips_finished(project) >= 1, unbroken.patience)
        processes = tree(psutil.Process(process.pid))
        assert not is_free(project)
        processes[whom].send_signal(number)
        wait_until(lambda: nothing_left(processes), GONE_SECONDS)
        assert process.wait() != 0
    wait_until(lambda: is_free(project), GONE_SECONDS)
    assert 1 <= clips_finished(project) < CLIPS
    with step(project) as process:
        assert process.wait() == 0, (project / "log").read_text()
    made, resumed = video(project)
    assert made == unbroken.video and resumed >= 1


@pytest.mark.parametrize("whom", [AGENT, RANK], ids=["kill-agent", "kill-rank"])
def test_the_end_of_what_the_step_launched(project, unbroken, whom):
    """The step itself tries again, and goes on after the last finished clip."""
    with step(project) as process:
        wait_until(lambda: clips_finished(project) >= 1, unbroken.patience)
        processes = tree(psutil.Process(process.pid))
        processes[whom].kill()
        wait_until(lambda: nothing_left(processes[AGENT:]), GONE_SECONDS)
        assert process.wait() == 0, (project / "log").read_text()
    assert "Another try goes on after what is finished" in (project / "log").read_text()
    wait_until(lambda: is_free(project), GONE_SECONDS)
    made, resumed = video(project)
    assert made == unbroken.video and resumed >= 1


def test_a_rank_that_hangs(project, unbroken, monkeypatch):
    # A healthy worker is silent while it starts, for a part of this time.
    stall_seconds = round(unbroken.seconds)
    monkeypatch.setenv("WAN_TORCHRUN_STALL_TIMEOUT_SECONDS", str(stall_seconds))
    with step(project) as process:
        wait_until(lambda: clips_finished(project) >= 1, unbroken.patience)
        processes = tree(psutil.Process(process.pid))
        # It cannot be asked for its stacks any more; tests/launch/test_torchrun.py has one that can.
        processes[RANK].suspend()
        wait_until(lambda: nothing_left(processes[AGENT:]), stall_seconds + GONE_SECONDS)
        assert process.wait() != 0
    assert f"The worker hung: dance made no progress for {stall_seconds} s" in (project / "log").read_text()
    wait_until(lambda: is_free(project), GONE_SECONDS)
    with step(project) as process:
        assert process.wait() == 0, (project / "log").read_text()
    made, resumed = video(project)
    assert made == unbroken.video and resumed >= 1


def test_a_rank_without_memory(project, unbroken):
    with step(project) as process:
        wait_until(lambda: clips_finished(project) >= 1, unbroken.patience)
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
    """A real `dagster dev` that is up within `patience` seconds; asks its webserver."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "dagster", "dev", "-h", "127.0.0.1", "-p", str(port)]
    with (folder / "dev.log").open("w") as log:
        server = subprocess.Popen([*command, "-w", "workspace.yaml"], stdout=log, stderr=log, cwd=ROOT)

    def ask(query: str, **variables: object) -> dict:
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{port}/graphql", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["data"]

    def up() -> bool:
        try:
            return bool(ask("{ version }"))
        except OSError:
            return False

    try:
        wait_until(up, patience)
        yield ask
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(patience)


def test_cancel_in_the_ui(project, unbroken):
    with (
        dagster_dev(project, unbroken.patience) as ask,
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
        run = ask(LAUNCH, parameters=parameters)["launchPipelineExecution"]["run"]["id"]
        wait_until(lambda: clips_finished(project) >= 1, unbroken.patience)
        working = [p for p in psutil.process_iter(["cmdline"]) if is_of(p, project)]
        assert working
        ask(TERMINATE, run=run)
        wait_until(lambda: nothing_left(working), GONE_SECONDS)
        wait_until(lambda: instance.get_run_by_id(run).status == dg.DagsterRunStatus.CANCELED, unbroken.patience)
    wait_until(lambda: is_free(project), GONE_SECONDS)
    with step(project) as process:
        assert process.wait() == 0, (project / "log").read_text()
    made, resumed = video(project)
    assert made == unbroken.video and resumed >= 1


def is_of(process: psutil.Process, project: Path) -> bool:
    """Whether it is a worker or its torchrun, launched for this project."""
    try:
        words = " ".join(process.cmdline())
        return "wan_orchestration.worker" in words and process.environ().get("WAN_DATA_ROOT") == str(project)
    except psutil.Error:
        return False
