"""The Slurm client, the worker and the engine on a real Slurm: two nodes on this machine.

`pytest -m heavy tests/launch/test_cluster.py`, as root; installs Slurm (Debian, Ubuntu) where there is none.
"""

import getpass
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import psutil
import pytest
from steps import launch, reason

from wan_orchestration.generate import runner
from wan_orchestration.jobs.clips import check_clips
from wan_orchestration.launch.slurm import SlurmClient
from wan_orchestration.protocol.messages import Request, Task
from wan_orchestration.settings.generate import GenerateSettings

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "slurm_single_machine.sh"
DEFINITIONS = Path(__file__).with_name("cluster_definitions.py")

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[Path]:
    """The folder of a running Slurm."""
    if os.geteuid() != 0:
        pytest.skip("Slurm's daemons are started as root")
    if not shutil.which("slurmctld"):
        if not shutil.which("apt-get"):
            pytest.skip("Slurm is not installed, and there is no apt-get to install it with")
        subprocess.run([SCRIPT, "install"], check=True)
    folder = tmp_path_factory.mktemp("cluster")
    subprocess.run([SCRIPT, "start", folder], check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        yield folder
        subprocess.run([SCRIPT, "stop", folder], check=True)


@pytest.fixture
def client(cluster, tmp_path) -> SlurmClient:
    return SlurmClient(nodes=2, gpus_per_node=0, work_folder=str(tmp_path / "slurm"), poll_seconds=0.5)


@pytest.fixture
def make_request(tiny_snapshot, make_job, tmp_path) -> Callable[..., Request]:
    clips = make_job("dance", frames=9)

    def make(steps: int = 2, output: str = "videos", exact: Path | None = None) -> Request:
        task = Task(
            job_id="dance",
            clips=check_clips(clips, "animate"),
            output=tmp_path / output / "dance",
            settings=GenerateSettings(clip_len=5, sampling_steps=steps),
            created_at=datetime.now(UTC),
            save_frames=exact,
        )
        return Request(snapshot=tiny_snapshot, tasks=[task])

    return make


LONG = 1000
"""Denoising steps that take minutes."""


class Silent:
    def log(self, message):
        pass

    progress = segment = finished = log


@pytest.fixture
def materialize(tmp_path, monkeypatch) -> Iterator[Callable[..., subprocess.Popen]]:
    """Starts `dagster asset materialize`; what it prints goes to tmp_path/run.log."""
    processes = []
    (tmp_path / "home").mkdir()

    def start(client: SlurmClient, request: Request) -> subprocess.Popen:
        command = [sys.executable, "-m", "dagster", "asset", "materialize", "-f", DEFINITIONS, "--select", "launched"]
        variables = {
            "DAGSTER_HOME": str(tmp_path / "home"),
            "REQUEST": request.model_dump_json(),
            "CLIENT": client.model_dump_json(),
        }
        with (tmp_path / "run.log").open("w") as log:
            processes.append(subprocess.Popen(command, env={**os.environ, **variables}, stdout=log, stderr=log))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait()


def squeue(*options: str) -> list[str]:
    done = subprocess.run(
        ["squeue", "--noheader", f"--user={getpass.getuser()}", "--format=%i %T", *options],
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.splitlines()


def workers(count: int = 0, seconds: float = 60) -> list[psutil.Process]:
    """The processes of the engine, once there are as many as expected."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = [process for process in psutil.process_iter(["cmdline"]) if is_worker(process)]
        if len(found) == count:
            return found
        time.sleep(0.2)
    raise AssertionError(f"expected {count} workers, found {found}; {squeue()}")


def is_worker(process: psutil.Process) -> bool:
    command = process.info["cmdline"] or []
    try:
        worker = "wan_orchestration.worker" in command and "torch.distributed.run" not in command
        return worker and "SLURM_JOB_ID" in process.environ()
    except psutil.NoSuchProcess:
        return False


def wait_for_denoising(folder: Path, seconds: float = 90) -> None:
    """Wait until a video is in its first denoising steps."""
    end = time.monotonic() + seconds
    while not any('"step": 3' in file.read_text() for file in folder.glob("slurm/*/messages.jsonl")):
        assert time.monotonic() < end, "denoising did not begin"
        time.sleep(0.2)


def test_two_nodes_make_the_same_video_as_one_process(client, make_request, tmp_path):
    outcome, log = launch(client, make_request(output="two", exact=tmp_path / "two.npz"))
    assert outcome == {"dance": "succeeded"}
    assert any("2 ranks, sequence parallel of degree 2" in line for line in log)
    assert any("running on n[1-2]" in line for line in log)
    (result,) = runner.run([(make_request(output="one", exact=tmp_path / "one.npz"), Silent())])
    assert result.status == "succeeded"
    one, two = (np.load(tmp_path / f"{name}.npz")["frames"] for name in ("one", "two"))
    assert one.shape == (3, 9, 64, 96)
    np.testing.assert_allclose(two, one, atol=1e-4)
    assert not list((tmp_path / "slurm").glob("wan-*"))


def test_a_cancelled_step_leaves_no_job(client, make_request, materialize, tmp_path):
    process = materialize(client, make_request(LONG))
    wait_for_denoising(tmp_path)
    assert len(workers(2)) == 2
    process.terminate()
    process.wait(30)
    assert squeue() == [], "the step waits until its job is gone"
    assert workers(0, seconds=1) == []


def test_the_next_run_takes_over_from_a_killed_run(client, make_request, materialize, tmp_path):
    process = materialize(client, make_request(60))
    wait_for_denoising(tmp_path)
    (before,) = squeue()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert squeue() == [before], "the Slurm job works on"
    outcome, log = launch(client, make_request(60))
    assert outcome == {"dance": "succeeded"}
    assert any(f"Takes over the Slurm job {before.split()[0]} " in line for line in log)
    assert not any("Submitted" in line for line in log)


def test_a_warm_job(client, make_request, materialize, tmp_path):
    """Two nodes serve one request after another; a cancelled step leaves them to the next."""
    outcome, _ = launch(client, make_request(output="cold", exact=tmp_path / "cold.npz"))
    assert outcome == {"dance": "succeeded"}
    warm = client.model_copy(update={"keep_warm_seconds": 60.0})
    launch(warm, make_request(steps=3))
    before = squeue(), {process.pid for process in workers(2)}

    process = materialize(warm, make_request(LONG))
    wait_for_denoising(tmp_path)
    process.terminate()
    process.wait(60)
    assert "Takes over the warm Slurm job" in (tmp_path / "run.log").read_text()
    assert (squeue(), {process.pid for process in workers(2)}) == before

    outcome, log = launch(warm, make_request(output="warm", exact=tmp_path / "warm.npz"))
    assert outcome == {"dance": "succeeded"}
    assert any(line.startswith("Takes over the warm Slurm job") for line in log)
    assert (squeue(), {process.pid for process in workers(2)}) == before
    cold, later = (np.load(tmp_path / f"{name}.npz")["frames"] for name in ("cold", "warm"))
    np.testing.assert_array_equal(later, cold)

    assert workers(0, seconds=90) == [], "it ends when it has been idle for long enough"
    end = time.monotonic() + 30
    while squeue():
        assert time.monotonic() < end
        time.sleep(0.2)


def test_a_rejected_submission(client, make_request):
    text, retryable = reason(launch(client.model_copy(update={"partition": "nowhere"}), make_request())[0])
    assert text.startswith("Slurm rejected the job: sbatch: error: invalid partition specified: nowhere")
    assert not retryable


def test_cancelled_by_somebody_else(client, make_request, tmp_path):
    def cancel():
        wait_for_denoising(tmp_path)
        subprocess.run(["scancel", squeue()[0].split()[0]], check=True)

    thread = threading.Thread(target=cancel)
    thread.start()
    text, retryable = reason(launch(client, make_request(LONG))[0])
    thread.join()
    assert "was cancelled by somebody else (scancel) before it had a result for dance" in text
    assert not retryable
    assert workers(0) == []


def test_a_time_limit(client, make_request):
    """Slurm's shortest is a minute."""
    text, retryable = reason(launch(client.model_copy(update={"time_limit": "1"}), make_request(LONG))[0])
    assert "was stopped at its time limit (1:00) before it had a result for dance" in text
    assert retryable
    assert workers(0) == []


def test_a_lost_node(client, make_request, cluster, tmp_path):
    """All processes of a node vanish: its daemon, its job steps, its rank."""

    def lose():
        wait_for_denoising(tmp_path)
        daemon = psutil.Process(int((cluster / "slurmd.n2.pid").read_text()))
        (rank,) = [worker for worker in workers(2) if worker.environ()["SLURMD_NODENAME"] == "n2"]
        torchrun, step = rank.parents()[:2]
        assert step.name() == "slurmstepd"
        for process in (daemon, step, torchrun, rank):
            process.kill()

    thread = threading.Thread(target=lose)
    thread.start()
    try:
        outcome = launch(client, make_request(LONG))[0]
    finally:
        thread.join()
        subprocess.run([SCRIPT, "node", cluster, "n2"], check=True)
    # The first rank may notice before Slurm does. Then it reports that a retry may help.
    if outcome != {"dance": "may pass"}:
        text, retryable = reason(outcome)
        assert "lost a node (n2) before it had a result for dance" in text
        assert retryable
    assert workers(0) == []
