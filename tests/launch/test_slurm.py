"""The Slurm client with the real worker; the engine and Slurm are stand-ins. test_cluster.py uses a real Slurm."""

import fcntl
import json
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from dagster_pipes import encode_param
from pydantic import ValidationError
from steps import launch, reason
from tasks import make_task

from wan_orchestration.launch import slurm, slurm_warm
from wan_orchestration.launch.slurm import SlurmClient
from wan_orchestration.launch.slurm_failures import failure
from wan_orchestration.launch.slurm_folder import LaunchFolder
from wan_orchestration.launch.slurm_queue import SlurmJob
from wan_orchestration.launch.slurm_warm import WarmLaunch
from wan_orchestration.launch.tail import TailMessageReader
from wan_orchestration.protocol.messages import Request, Result
from wan_orchestration.settings.generate import GenerateSettings

HERE = Path(__file__).parent


@pytest.fixture
def cluster(tmp_path, monkeypatch) -> Path:
    """The folder of a fake Slurm, whose commands come first on the PATH."""
    commands, home = tmp_path / "bin", tmp_path / "cluster"
    commands.mkdir()
    home.mkdir()
    for name in ("sbatch", "srun", "squeue", "scancel", "sinfo"):
        call = shlex.join([sys.executable, "-S", str(HERE / "fake_slurm.py"), name])
        (commands / name).write_text(f'#!/bin/sh\nexec {call} "$@"\n')
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SLURM", str(home))
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(slurm, "WORKER", "stand_in_worker")
    monkeypatch.setattr(slurm, "CANCEL_POLL_SECONDS", 0.05)
    return home


@pytest.fixture
def work_folder(tmp_path) -> Path:
    # Unquoted, a shell would run a command in this name.
    return tmp_path / "a $(touch gone) 'folder'"


@pytest.fixture
def client(work_folder) -> SlurmClient:
    return SlurmClient(nodes=2, gpus_per_node=0, work_folder=str(work_folder), poll_seconds=0.1, grace_seconds=5)


def make_request(folder: Path, *names: str, steps: int = 20) -> Request:
    """A request for jobs; the stand-in engine behaves as the first one's name says."""
    clips = folder / "clips"
    clips.mkdir(exist_ok=True)
    if not (clips / "src_pose.mp4").exists():
        (clips / "src_pose.mp4").touch()
    tasks = [make_task(name, clips, GenerateSettings(sampling_steps=steps)) for name in names]
    return Request(snapshot=folder, tasks=[task.model_copy(update={"output": folder}) for task in tasks])


def jobs(cluster: Path) -> list[dict]:
    """The fake Slurm's jobs, in the order of their submission."""
    return [json.loads(file.read_text()) for file in sorted(cluster.glob("*.json"))]


def test_submits_and_reports(cluster, client, work_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "of the job that Dagster itself may run in")
    client = client.model_copy(
        update={"partition": "gpu; rm -rf /", "time_limit": "2:00:00", "directives": ["--qos=high", "--mem=8G"]}
    )
    outcome, log = launch(client, make_request(tmp_path, "succeed", "second"))
    assert outcome == {"succeed": "succeeded", "second": "succeeded"}
    assert any(line.startswith(("succeed: starting", "succeed: segment 1 of 1, step ")) for line in log)
    assert "threads: 2" in log
    (job,) = jobs(cluster)
    assert job["words"][:2] == ["--parsable", "--no-requeue"]
    assert job["words"][4:-1] == [
        "--open-mode=append",
        "--export=ALL",
        "--nodes=2",
        "--ntasks-per-node=1",
        "--partition=gpu; rm -rf /",
        "--time=2:00:00",
        "--qos=high",
        "--mem=8G",
    ]
    assert [file.name for file in work_folder.iterdir() if not file.name.endswith(".lock")] == []
    assert not Path("gone").exists()


def test_gpus_and_cores_are_requested(tmp_path):
    client = SlurmClient(nodes=3, gpus_per_node=4, cpus_per_node=32, account="film")
    folder = LaunchFolder(tmp_path, make_request(tmp_path, "job"))
    arguments = client._arguments(folder, 3, 4)
    assert {"--nodes=3", "--gpus-per-node=4", "--cpus-per-task=32", "--account=film"} <= set(arguments)
    script = slurm.batch_script(["request.json"], 3, 4, 32)
    assert "srun --ntasks-per-node=1 --kill-on-bad-exit=1 --cpus-per-task=32 " in script
    assert " --nnodes=3 --nproc-per-node=4 " in script
    with pytest.raises(ValidationError, match="no long option of sbatch"):
        SlurmClient(directives=["-q high"])


@pytest.mark.parametrize(
    "name, words",
    [("crash", "Slurm job 1 failed, because n2 does not answer any more,"), ("mute", "Slurm job 1 ended")],
)
def test_a_worker_without_a_result_fails_in_words(cluster, client, work_folder, tmp_path, name, words):
    text, retryable = reason(launch(client, make_request(tmp_path, name))[0])
    assert text.startswith(f"{words} before it had a result for {name}. ")
    assert retryable
    assert len(list(work_folder.glob("wan-*/slurm.log"))) == 1, "the log is kept"


@pytest.mark.parametrize(
    "state, words, retryable",
    [
        ("TIMEOUT", "was stopped at its time limit (30:00)", True),
        ("NODE_FAIL", "lost a node (n2)", True),
        ("PREEMPTED", "had to make room", True),
        ("CANCELLED", "was cancelled by somebody else", False),
        ("OUT_OF_MEMORY", "used more main memory", False),
    ],
)
def test_each_final_state_has_words(cluster, state, words, retryable):
    job = SlurmJob("7", state, "None", "30:00", "0:00", "n[1-2]")
    text, may_retry = reason(failure(job, ["dance"], Path("slurm.log")))
    assert text.startswith(f"Slurm job 7 {words}")
    assert "before it had a result for dance" in text
    assert may_retry is retryable


def test_a_job_that_slurm_ends(cluster, client, tmp_path):
    (cluster / "ends").write_text("TIMEOUT")
    text, retryable = reason(launch(client, make_request(tmp_path, "stubborn"))[0])
    assert text.startswith("Slurm job 1 was stopped at its time limit (1:00) before it had a result for stubborn")
    assert retryable


def test_a_job_that_hangs_is_cancelled(cluster, client, tmp_path):
    client = client.model_copy(update={"stall_timeout_seconds": 10})
    text, retryable = reason(launch(client, make_request(tmp_path, "stubborn"))[0])
    assert text.startswith("stubborn made no progress for 1") and "so Slurm job 1 was cancelled" in text
    assert not retryable
    (job,) = jobs(cluster)
    assert job["state"] == "CANCELLED"


def test_no_slurm_here(client, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    text, retryable = reason(launch(client, make_request(tmp_path, "job"))[0])
    assert "Slurm's commands are not on the PATH" in text
    assert not retryable


def test_a_rejected_submission(cluster, client, tmp_path):
    (cluster / "refuses").write_text("sbatch: error: invalid partition specified: gpu")
    text, retryable = reason(launch(client, make_request(tmp_path, "job"))[0])
    assert text == "Slurm rejected the job: sbatch: error: invalid partition specified: gpu"
    assert not retryable


def test_a_controller_that_is_down(cluster, client, tmp_path):
    trouble = cluster / "unreachable"
    trouble.write_text("squeue: error: Unable to contact slurm controller (connect failure)")
    text, retryable = reason(launch(client, make_request(tmp_path, "succeed"))[0])
    assert "Slurm's controller does not answer" in text
    assert retryable
    trouble.unlink()

    def outage():
        while not jobs(cluster):
            time.sleep(0.05)
        (cluster / "part").write_text("squeue: error: Unable to contact slurm controller (connect failure)")
        (cluster / "part").rename(trouble)
        time.sleep(0.5)
        trouble.unlink()

    thread = threading.Thread(target=outage)
    thread.start()
    outcome, log = launch(client, make_request(tmp_path, "succeed"))
    thread.join()
    assert outcome == {"succeed": "succeeded"}
    assert any("retrying" in line for line in log)


def test_cancelled_with_the_step(cluster, client, tmp_path):
    def cancel():
        while not (tmp_path / "pids").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=cancel)
    thread.start()
    with pytest.raises(BaseException) as caught:
        launch(client, make_request(tmp_path, "stubborn"))
    thread.join()
    assert type(caught.value).__name__ in ("DagsterExecutionInterruptedError", "KeyboardInterrupt")
    assert [job["state"] for job in jobs(cluster)] == ["CANCELLED"]


def test_the_next_run_takes_over(cluster, client, work_folder, tmp_path):
    """A killed run leaves its Slurm job behind."""
    request = make_request(tmp_path, "succeed")
    leave_behind(client, work_folder, request)
    later = make_request(tmp_path, "succeed")
    assert later != request
    outcome, log = launch(client, later)
    assert outcome == {"succeed": "succeeded"}
    assert len(jobs(cluster)) == 1
    assert any("Takes over the Slurm job 1" in line for line in log)
    assert "threads: 2" in log, "what it reported while no step watched"


def test_another_video_in_the_same_place_cancels_the_first(cluster, client, work_folder, tmp_path):
    leave_behind(client, work_folder, make_request(tmp_path, "succeed", steps=7))
    outcome, _ = launch(client, make_request(tmp_path, "succeed"))
    assert outcome == {"succeed": "succeeded"}
    assert [job["state"] for job in jobs(cluster)] == ["CANCELLED", "COMPLETED"]
    assert not list(work_folder.glob("wan-*"))


def test_videos_that_were_finished_while_no_step_watched(cluster, client, work_folder, tmp_path):
    request = make_request(tmp_path, "succeed")
    folder = LaunchFolder(work_folder, request)
    folder.write("")
    result = Result(job_id="succeed", status="succeeded", created_at=request.tasks[0].created_at)
    messages = [
        {"method": "opened", "params": {"extras": {}}},
        {"method": "report_custom_message", "params": {"payload": result.model_dump(mode="json")}},
        {"method": "closed", "params": {}},
    ]
    folder.messages.write_text("".join(json.dumps(message) + "\n" for message in messages))
    assert not folder.has_all_videos()
    (tmp_path / "result.json").write_text(result.model_dump_json(indent=2))
    assert folder.has_all_videos()
    outcome, _ = launch(client, request)
    assert outcome == {"succeed": "succeeded"}
    assert jobs(cluster) == []
    assert not folder.path.exists()
    (tmp_path / "result.json").write_text(result.model_copy(update={"frames": 3}).model_dump_json())
    assert not folder.has_all_videos()


def test_one_run_at_a_time(cluster, client, work_folder, tmp_path):
    work_folder.mkdir()
    with (work_folder / "generate-b.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        text, retryable = reason(launch(client, make_request(tmp_path, "a", "b"))[0])
    assert text.startswith("Another run is making b on the cluster right now")
    assert not retryable
    assert jobs(cluster) == []


@pytest.fixture
def warm(client, cluster) -> Iterator[SlurmClient]:
    """As `client`; Slurm jobs stay for a minute, and are gone after the test."""
    yield client.model_copy(update={"keep_warm_seconds": 60})
    for job in jobs(cluster):
        with suppress(ProcessLookupError):
            os.killpg(job["pid"], signal.SIGKILL)


def states(cluster: Path) -> list[str]:
    return [job["state"] for job in jobs(cluster)]


def test_the_next_request_takes_a_warm_job_over(cluster, warm, work_folder, tmp_path):
    outcome, first = launch(warm, make_request(tmp_path, "succeed-a"))
    assert outcome == {"succeed-a": "succeeded"}
    outcome, second = launch(warm, make_request(tmp_path, "succeed-b", "third"))
    assert outcome == {"succeed-b": "succeeded", "third": "succeeded"}
    assert any(line.startswith("Takes over the warm Slurm job 1, wan-warm-") for line in second)
    (process,) = [line.split(",")[0] for line in first if line.startswith("process: ")]
    assert f"{process}, warm: False" in first and f"{process}, warm: True" in second
    assert states(cluster) == ["RUNNING"]
    (folder,) = [path for path in work_folder.iterdir() if path.is_dir()]
    assert folder.name == jobs(cluster)[0]["name"], "requests leave nothing behind"

    # One that would be started otherwise, and one whose time is almost up.
    launch(warm.model_copy(update={"partition": "other"}), make_request(tmp_path, "succeed-c"))
    assert states(cluster) == ["RUNNING", "RUNNING"]
    (cluster / "left").write_text("9:59")
    launch(warm, make_request(tmp_path, "succeed-d"))
    assert states(cluster) == ["RUNNING", "RUNNING", "RUNNING"]


def test_a_warm_job_ends_when_idle_or_lost(cluster, warm, work_folder, tmp_path):
    short = warm.model_copy(update={"keep_warm_seconds": 0.2})
    launch(short, make_request(tmp_path, "succeed-a"))
    wait_until(lambda: states(cluster) == ["COMPLETED"])
    launch(warm, make_request(tmp_path, "succeed-b"))
    os.killpg(jobs(cluster)[1]["pid"], signal.SIGKILL)
    slurm.slurm_queue.cancel(jobs(cluster)[1]["name"])
    outcome, _ = launch(warm, make_request(tmp_path, "succeed-c"))
    assert outcome == {"succeed-c": "succeeded"}
    assert states(cluster) == ["COMPLETED", "CANCELLED", "RUNNING"]
    assert len(list(work_folder.glob("wan-*"))) == 1, "the folders of those that ended are gone"


def test_folders_of_warm_jobs_that_died_are_removed_later(cluster, work_folder, tmp_path):
    given = slurm_warm.order(LaunchFolder(work_folder, make_request(tmp_path, "long")), {})
    waits, died, died_lately = launches = [WarmLaunch.new(work_folder, "key") for _ in range(3)]
    for one in launches:
        one.write("", given)
    (cluster / "1.json").write_text(json.dumps({"name": waits.name, "state": "PENDING", "limit": "1:00"}))
    for one in (waits, died):
        os.utime(one.orders.path, (0, 0))
    assert slurm_warm.take_over(work_folder, "key", given) is None
    assert [one.path.exists() for one in launches] == [True, False, True]
    assert {one.name for one in slurm_warm.working_on(work_folder, given["folder"])} == {waits.name, died_lately.name}


@pytest.mark.parametrize("name, state", [("patient", "RUNNING"), ("stubborn", "CANCELLED")])
def test_a_cancelled_step_keeps_a_warm_job_that_stops_in_time(cluster, warm, tmp_path, monkeypatch, name, state):
    monkeypatch.setattr(slurm, "CANCEL_SECONDS", 5 if state == "RUNNING" else 0.5)

    def cancel():
        wait_until((tmp_path / "pids").exists)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=cancel)
    thread.start()
    with pytest.raises(BaseException) as caught:
        launch(warm, make_request(tmp_path, name))
    thread.join()
    assert type(caught.value).__name__ in ("DagsterExecutionInterruptedError", "KeyboardInterrupt")
    assert states(cluster) == [state]
    outcome, log = launch(warm, make_request(tmp_path, "succeed"))
    assert outcome == {"succeed": "succeeded"}
    assert any("Takes over the warm" in line for line in log) is (state == "RUNNING")


def test_a_killed_steps_order_is_taken_over(cluster, warm, work_folder, tmp_path):
    leave_warm(warm, work_folder, make_request(tmp_path, "gated"))

    def go():
        wait_until((work_folder / "generate-gated.lock").exists)
        time.sleep(1)
        (tmp_path / "go").touch()

    thread = threading.Thread(target=go)
    thread.start()
    outcome, log = launch(warm, make_request(tmp_path, "gated"))
    thread.join()
    assert outcome == {"gated": "succeeded"}
    assert any("Takes over the Slurm job 1 of an earlier run" in line for line in log)
    assert states(cluster) == ["RUNNING"]


def test_a_killed_steps_order_makes_way_for_another_video(cluster, warm, work_folder, tmp_path):
    leave_warm(warm, work_folder, make_request(tmp_path, "patient", "same"))
    wait_until((tmp_path / "pids").exists)
    outcome, log = launch(warm, make_request(tmp_path, "succeed", "same"))
    assert outcome == {"succeed": "succeeded", "same": "succeeded"}
    assert (tmp_path / "cancelled").exists()
    assert any("Takes over the warm Slurm job 1" in line for line in log)
    assert states(cluster) == ["RUNNING"]


def test_warm_jobs_and_jobs_that_wait(cluster, warm, work_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(slurm, "YIELD_SECONDS", 0.5)
    (cluster / "slots").write_text("1")
    leave_warm(warm, work_folder, make_request(tmp_path, "succeed-a"))
    outcome, _ = launch(warm, make_request(tmp_path, "succeed-b"))
    assert outcome == {"succeed-b": "succeeded"}
    assert states(cluster) == ["RUNNING", "CANCELLED"], "it does not wait until the first one ends"
    outcome, log = launch(warm.model_copy(update={"partition": "other"}), make_request(tmp_path, "succeed-c"))
    assert outcome == {"succeed-c": "succeeded"}
    assert any(line.startswith("Ends the idle Slurm job 1") for line in log)
    assert states(cluster) == ["COMPLETED", "CANCELLED", "RUNNING"]


def test_only_whole_messages_are_read(tmp_path):
    messages = []

    class Handler:
        handle_message = staticmethod(messages.append)

    reader = TailMessageReader(tmp_path / "messages")
    with reader.path.open("wb", buffering=0) as file, reader.read_messages(Handler()):
        lines = [json.dumps({"text": text}).encode() + b"\n" for text in ("ä" * 2_000_000, "b")]
        file.write(lines[0][:7])
        reader.read()
        assert messages == []
        file.write(lines[0][7:] + lines[1])
        reader.read()
        reader.read()
    assert messages == [json.loads(line) for line in lines]


def wait_until(what: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def leave_behind(client: SlurmClient, work_folder: Path, request: Request) -> None:
    """Submit a request's Slurm job, like a run that is killed right after that."""
    folder = LaunchFolder(work_folder, request)
    folder.write(slurm.batch_script([str(folder.path / "request.json")], 2, 1, None))
    variables = {**os.environ, **pipes_variables(folder)}
    slurm.slurm_queue.submit(folder.script, client._arguments(folder, 2, 0), variables)


def leave_warm(client: SlurmClient, work_folder: Path, request: Request) -> None:
    """As `leave_behind`, with a Slurm job that stays."""
    folder = LaunchFolder(work_folder, request)
    folder.write("")
    warm = WarmLaunch.new(work_folder, client._key(2, 0))
    script = slurm.batch_script([str(warm.orders.path), "60"], 2, 1, None)
    warm.write(script, slurm_warm.order(folder, pipes_variables(folder)))
    slurm.slurm_queue.submit(warm.script, client._arguments(warm, 2, 0), os.environ)


def pipes_variables(folder: LaunchFolder) -> dict[str, str]:
    names = ("asset_keys", "code_version_by_asset_key", "provenance_by_asset_key", "partition_key", "job_name")
    names += ("partition_key_range", "partition_time_window")
    context = {**dict.fromkeys(names), "run_id": "killed", "retry_number": 0, "extras": {}}
    messages = {"path": str(folder.messages)}
    return {
        "DAGSTER_PIPES_CONTEXT": encode_param({"data": context}),
        "DAGSTER_PIPES_MESSAGES": encode_param(messages),
    }
