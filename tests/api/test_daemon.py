"""The API with a real daemon; either is killed."""

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import dagster as dg
import httpx
import pytest
from api_server import JOBS, free_port, serving, serving_process, stopped
from media import moving_frames

from wan_orchestration.cli import main as cli
from wan_orchestration.video.reader import FrameReader
from wan_orchestration.video.writer import write_lossless

pytestmark = pytest.mark.heavy

PATIENCE = 300
STEPS, FRAMES = 12, 13
"""Three segments of some seconds each, so that a process can be killed in the middle."""


@pytest.fixture(scope="module", autouse=True)
def settings(project, tiny_snapshot) -> Iterator[None]:
    variables = {
        "WAN_CHECKPOINT_DIR": str(tiny_snapshot),
        "WAN_DEFAULT_SAMPLING_STEPS": "2",
        "WAN_DEFAULT_CLIP_LEN": "5",
        "WAN_DROP_RUN": "false",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        yield


@contextlib.contextmanager
def daemon(project) -> Iterator[subprocess.Popen]:
    command = [sys.executable, "-m", "dagster._daemon", "run", "-w", "workspace.yaml"]
    process = subprocess.Popen(command, cwd=project, start_new_session=True)
    try:
        yield process
    finally:
        stopped(process)


@pytest.fixture
def wait_for() -> Callable[..., dict]:
    def poll(url: str, key: str, is_done: Callable[[dict], bool]) -> dict:
        for _ in range(PATIENCE * 4):
            with contextlib.suppress(httpx.TransportError):
                job = httpx.get(f"{url}{JOBS}/{key}", timeout=30).raise_for_status().json()
                if is_done(job):
                    return job
                assert job["status"] in ("queued", "running"), job
            time.sleep(0.25)
        raise AssertionError(job)

    return poll


@pytest.fixture
def add_long_job(add_job, project) -> Callable[[str], str]:
    def add(key: str) -> str:
        add_job(key)
        for name, side in (("src_pose", 64), ("src_face", 512)):
            write_lossless(project / "data" / "jobs" / key / f"{name}.mp4", moving_frames(FRAMES, side, side), 30)
        return key

    return add


def curl(command: str) -> bytes:
    return subprocess.run(shlex.split(command), capture_output=True, check=True).stdout


def test_the_three_steps(project, add_job, wait_for):
    """The README's three commands, on another port."""
    add_job("demo")
    with daemon(project), serving(project, port := free_port()) as url:
        job = json.loads(
            curl(
                f"""curl -X POST http://localhost:{port}/animate/jobs \
                -H 'Content-Type: application/json' \
                -d '{{"src_root_path": "data/jobs/demo"}}'"""
            )
        )
        key = job["job_id"]
        job = wait_for(url, key, lambda job: job["status"] == "succeeded")
        assert job["video"]["frames"] == 5
        (project / "result.mp4").write_bytes(curl(f"curl http://localhost:{port}/animate/jobs/{key}/media"))
        with FrameReader(project / "result.mp4") as reader:
            reader.verify()
            assert (reader.info.frames, reader.info.width, reader.info.height) == (5, 64, 64)
        ready = httpx.get(f"{url}/readyz").json()
        assert ready == {"status": "ready", "checks": {"instance": "ok", "jobs_folder": "ok", "daemon": "ok"}}


def test_from_a_shell(project, add_job, capsys, tmp_path):
    add_job("shell")
    with serving(project, port := free_port()):
        url = f"--url=http://127.0.0.1:{port}"
        # There is no daemon yet; the job is accepted.
        assert cli.main(["submit", "data/jobs/shell", "--sampling-steps", "3", "--json", url]) == 0
        job = json.loads(capsys.readouterr().out)
        assert (job["status"], job["settings"]) == ("queued", {"sampling_steps": 3})
        with daemon(project):
            assert cli.main(["wait", "shell", url]) == 0
            output = capsys.readouterr().err
            assert "step" in output and output.splitlines()[-1].startswith("shell: succeeded")
        assert cli.main(["fetch", "shell", "-o", str(tmp_path / "out.mp4"), url]) == 0
        assert (tmp_path / "out.mp4").read_bytes() == (project / "data/videos/shell/video.mp4").read_bytes()
        assert cli.main(["cancel", "shell", "--purge", url]) == 0
        assert cli.main(["status", "shell", url]) == 1
        assert "there is no job 'shell'" in capsys.readouterr().err


@pytest.mark.parametrize("killed", ["api", "daemon", "both"])
def test_the_job_survives_a_killed_process(project, add_long_job, instance, wait_for, killed):
    key = add_long_job(f"killed-{killed}")
    port = free_port()
    with contextlib.ExitStack() as stack:
        worker = stack.enter_context(daemon(project))
        server = stack.enter_context(serving_process(project, port))
        url = f"http://127.0.0.1:{port}"
        body = {"src_root_path": f"data/jobs/{key}", "sampling_steps": STEPS}
        headers = {"Idempotency-Key": f"kill-{killed}"}
        httpx.post(url + JOBS, json=body, headers=headers, timeout=60).raise_for_status()
        wait_for(url, key, lambda job: (job["progress"] or {}).get("clip") == 2)
        if killed in ("daemon", "both"):
            os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()
        if killed in ("api", "both"):
            server.kill()
            server.wait()
            server = stack.enter_context(serving_process(project, port))
        # A client that got no answer repeats its request.
        again = httpx.post(url + JOBS, json=body, headers=headers, timeout=60).raise_for_status().json()
        assert again["job_id"] == key and again["status"] in ("queued", "running")
        if killed in ("daemon", "both"):
            worker = stack.enter_context(daemon(project))
        job = wait_for(url, key, lambda job: job["status"] == "succeeded")
        assert job["video"]["frames"] == FRAMES
        time.sleep(5)
        runs = instance.get_runs(dg.RunsFilter(tags={"dagster/partition": key}))
        assert [run.status for run in runs].count(dg.DagsterRunStatus.SUCCESS) == 1
        assert all(run.is_finished for run in runs)
        assert len(runs) == 1 or killed != "api"


def test_a_running_job_is_cancelled(project, add_job, wait_for):
    key = add_job("stopped")
    with daemon(project), serving(project, free_port()) as url:
        body = {"src_root_path": f"data/jobs/{key}", "sampling_steps": 1000}
        httpx.post(url + JOBS, json=body, timeout=60).raise_for_status()
        wait_for(url, key, lambda job: (job["progress"] or {}).get("step"))
        answer = httpx.delete(f"{url}{JOBS}/{key}", timeout=60).json()
        assert answer["status"] in ("running", "cancelled")
        job = wait_for(url, key, lambda job: job["status"] == "cancelled")
        assert job["finished_at"] and not job["cancelling"]
        assert httpx.delete(f"{url}{JOBS}/{key}?purge=true", timeout=60).status_code == 204
        assert not (project / "data" / "videos" / key).exists()
