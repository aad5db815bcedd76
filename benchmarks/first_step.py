"""Seconds of each stretch from the moment a job is sent to its first denoising step, and to its video.

    uv run python benchmarks/first_step.py [--jobs 3] [--drop] [--at-once] [--checkpoint-dir DIR] [--job FOLDER]

Starts `wan-animate serve --dagster` on an instance and a data folder of its own: API, daemon, code server. Posts the
jobs one after another, each when the one before is done; with --drop it copies them into the drop folder instead. Jobs
are short ready clips, or copies of --job. Settings come from the environment: `WAN_TORCHRUN_KEEP_WARM_SECONDS=60` keeps
the launch for the next job.

Times come from Dagster's event log, from the start times of the worker's processes, and from `result.json`. The table
has the first job, and the median of the others. "idle" is the CPU time of all processes while there is nothing to do.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dagster as dg
import httpx
import psutil
from long_video import draw_job

from wan_orchestration.launch.launcher import WORKER
from wan_orchestration.protocol.messages import Result
from wan_orchestration.protocol.progress import RunProgress

ROOT = Path(__file__).parents[1]
MINI = ROOT / "data" / "models" / "wan-animate-mini"
PATIENCE = 600.0
"""Longest time for a job, seconds."""
POLL_SECONDS = 0.05

STRETCHES = {
    "settled": "WAN_DROP_SETTLE_SECONDS have passed without a change",
    "queued": "the API (or the sensor) has put the run into the queue",
    "accepted": "the API has answered",
    "dequeued": "the daemon has taken the run from the queue",
    "process": "the run's process has started",
    "run": "it has loaded the code location",
    "step": "the step generated_video begins, after those before it",
    "launch": "the device is leased, the launch started",
    "rank": "torchrun has started the rank",
    "worker": "the rank has imported the engine, and begins the job",
    "loaded": "the weights are loaded",
    "encoded": "the inputs are encoded",
    "first": "the first denoising step is done",
    "made": "the video is made",
    "finished": "the run has finished",
}
"""What ends each stretch, in order; each begins where the one before it ends."""
FIRST = "first"

Moments = dict[str, float]
"""Unix time of the end of each stretch; a stretch that a job does not have is missing."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=3)
    parser.add_argument("--drop", action="store_true", help="copy jobs into the drop folder instead of posting them")
    parser.add_argument("--at-once", action="store_true", help="do not wait for a job before the next one is posted")
    parser.add_argument("--job", type=Path, help="a job folder to copy; default: clips drawn here")
    parser.add_argument("--frames", type=int, default=5, help="of drawn clips, one segment")
    parser.add_argument("--size", default="192x128", help="WIDTHxHEIGHT of drawn clips, multiples of 16")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--checkpoint-dir", type=Path, default=MINI)
    parser.add_argument("--idle", type=float, default=0.0, help="also measure the idle CPU time, for so many seconds")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as scratch:
        figures = measure(Path(scratch), arguments)
    print_table(figures)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2))


def measure(scratch: Path, arguments: argparse.Namespace) -> dict:
    """Seconds of each job's stretches, of all jobs together, and the idle CPU seconds per second."""
    width, height = map(int, arguments.size.split("x"))
    jobs = []
    for number in range(arguments.jobs):
        folder = scratch / f"job-{number}"
        if arguments.job:
            shutil.copytree(arguments.job, folder)
        else:
            draw_job(folder, arguments.frames, height, width)
        jobs.append(folder)
    with Service(scratch, arguments) as service:
        idle = service.idle(arguments.idle) if arguments.idle else None
        began = time.time()
        with ThreadPoolExecutor(len(jobs) if arguments.at_once else 1) as clients:
            rows = [stretches(*made) for made in clients.map(service.make, jobs)]
        return {"jobs": rows, "total": time.time() - began, "idle": idle, "load": os.getloadavg()[0]}


class Service:
    """`wan-animate serve --dagster` on an instance and a data folder of its own."""

    def __init__(self, scratch: Path, arguments: argparse.Namespace) -> None:
        self.drop, self.data, self.home = arguments.drop, scratch / "data", scratch / "dagster_home"
        self.jobs = self.data / "jobs"
        self.jobs.mkdir(parents=True)
        self.home.mkdir()
        shutil.copy(ROOT / "dagster_home" / "dagster.yaml", self.home)
        self.port, dagster_port = _free_port(), _free_port()
        # Without bytecode files, each process would compile all modules.
        inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        self.environment = {
            **inherited,
            "DAGSTER_HOME": str(self.home),
            "WAN_DATA_ROOT": str(self.data),
            "WAN_CHECKPOINT_DIR": str(arguments.checkpoint_dir.absolute()),
            "WAN_CACHE_ROOT": str(scratch / "cache"),
            "WAN_GPUS_LEASE_FOLDER": str(scratch / "leases"),
            "WAN_DEFAULT_SAMPLING_STEPS": str(arguments.steps),
            "WAN_DEFAULT_CLIP_LEN": str(arguments.frames),
            "WAN_DROP_RUN": str(arguments.drop),
        }
        self.settle_seconds = float(os.environ.get("WAN_DROP_SETTLE_SECONDS", "10"))
        self.command = [sys.executable, "-m", "wan_orchestration.cli.main", "serve", "--dagster"]
        self.command += [f"--port={self.port}", f"--dagster-port={dagster_port}"]
        self.log = scratch / "serve.log"

    def __enter__(self) -> "Service":
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                self.command, cwd=ROOT, env=self.environment, stdout=log, stderr=subprocess.STDOUT
            )
        # The kernel counts start times from the boot, whose time psutil knows to a second only.
        self.clock_offset = time.time() - psutil.Process(self.process.pid).create_time()
        self.instance = dg.DagsterInstance.from_config(str(self.home))
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=60)
        for _ in self._patiently():
            with contextlib.suppress(httpx.TransportError):
                if self.client.get("/readyz").json()["checks"].get("daemon") == "ok":
                    break
        # The code server loads the code in its first seconds, also after the daemon answers.
        time.sleep(10)
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)

    def idle(self, seconds: float) -> float:
        """CPU seconds per second of all processes while there is nothing to do."""
        before = self._cpu_seconds()
        time.sleep(seconds)
        return (self._cpu_seconds() - before) / seconds

    def _cpu_seconds(self) -> float:
        parent = psutil.Process(self.process.pid)
        times = [process.cpu_times() for process in [parent, *parent.children(recursive=True)]]
        return sum(spent.user + spent.system for spent in times)

    def make(self, job: Path) -> tuple[float, Moments]:
        """Send a job and wait for its end. Returns when it was sent, and its moments."""
        moments: Moments = {}
        if self.drop:
            part = self.jobs / f".{job.name}"
            shutil.copytree(job, part)
            part.rename(self.jobs / job.name)
            sent = time.time()
            moments["settled"] = sent + self.settle_seconds
        else:
            shutil.copytree(job, self.jobs / job.name)
            sent = time.time()
            answer = self.client.post("/animate/jobs", json={"src_root_path": f"data/jobs/{job.name}"})
            answer.raise_for_status()
            moments["accepted"] = time.time()
        run, first_step, started = self._wait(job.name)
        moments |= self._events(run) | started
        result = Result.read(self.data / "videos" / job.name / "result.json")
        assert result is not None and result.started_at is not None and result.finished_at is not None
        moments |= _worker_moments(result, first_step)
        return sent, moments

    def _wait(self, key: str) -> tuple[str, float, Moments]:
        """Waits for the end of a job's run: its id, its first denoising step, and when the launch's processes began."""
        first_step, processes = float("inf"), {}
        for _ in self._patiently():
            record = self._progress(key)
            if record and record.progress.kind == "progress":
                processes = processes or self._started(record)
                if record.progress.step:
                    first_step = min(first_step, record.at.timestamp())
            runs = self.instance.get_runs(dg.RunsFilter(tags={"dagster/partition": key}))
            if runs and runs[0].is_finished:
                assert runs[0].is_success, f"{runs[0].run_id} is {runs[0].status}: {self.log.read_text()[-5000:]}"
                return runs[0].run_id, first_step, processes
        raise AssertionError

    def _started(self, record: RunProgress) -> Moments:
        """When the launch's processes began: torchrun, or what started it, and the first rank."""
        found: list[float] = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if WORKER in process.cmdline():
                    found.append(process.create_time() + self.clock_offset)
        return {"launch": min(found), "rank": max(found)} if found else {}

    def _progress(self, key: str) -> RunProgress | None:
        try:
            return RunProgress.model_validate_json((self.data / "progress" / f"{key}.json").read_bytes())
        except (OSError, ValueError):
            return None

    def _events(self, run: str) -> Moments:
        """The moments that Dagster's event log has."""
        kinds = dg.DagsterEventType
        moments: Moments = {}
        for entry in self.instance.all_logs(run):
            event = entry.dagster_event
            if event is None:
                continue
            name = {
                kinds.RUN_ENQUEUED: "queued",
                kinds.RUN_STARTING: "dequeued",
                kinds.RUN_START: "run",
                kinds.RUN_SUCCESS: "finished",
            }.get(event.event_type)
            if event.event_type is kinds.STEP_START and event.step_key == "generated_video":
                name = "step"
            if event.event_type is kinds.ENGINE_EVENT and "Started process for run" in (event.message or ""):
                name = "process"
            if name:
                moments.setdefault(name, entry.timestamp)
        return moments

    def _patiently(self) -> Iterator[None]:
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            assert self.process.poll() is None, self.log.read_text()[-5000:]
            yield
            time.sleep(POLL_SECONDS)
        raise TimeoutError(self.log.read_text()[-5000:])


def _worker_moments(result: Result, first_step: float) -> Moments:
    """The moments that the worker knows. Phases of a video of one segment follow each other, more or less."""
    assert result.started_at and result.finished_at and result.seconds and result.settings
    begun, seconds = result.started_at.timestamp(), result.seconds
    loaded = begun + seconds.load
    encoded = loaded + seconds.compile + seconds.encode
    # The progress file is written some tenths of a second late.
    first = min(first_step, encoded + seconds.denoise / result.settings.sampling_steps)
    return {
        "worker": begun,
        "loaded": min(loaded, first),
        "encoded": min(encoded, first),
        "first": first,
        "made": result.finished_at.timestamp(),
    }


def stretches(sent: float, moments: Moments) -> dict[str, float]:
    """Seconds of each stretch, and from `sent` to the first step and to the end of the run.

    A moment that is earlier than the one before it, such as the start of a launch that an earlier job started, counts
    as no time.
    """
    seconds, last = {}, sent
    for name in STRETCHES:
        if name in moments:
            seconds[name] = max(0.0, moments[name] - last)
            last = max(last, moments[name])
    return seconds | {"sent to first step": moments[FIRST] - sent, "sent to finished": moments["finished"] - sent}


def print_table(figures: dict) -> None:
    first, *later = figures["jobs"]
    print(f"{'':<64} {'first job':>9} {'later jobs':>10}")
    for name in (*STRETCHES, "sent to first step", "sent to finished"):
        if name in first:
            others = [job[name] for job in later if name in job]
            median = f"{statistics.median(others):10.2f}" if others else ""
            print(f"{STRETCHES.get(name, name):<64} {first[name]:9.2f} {median:>10}")
    print(f"{len(figures['jobs'])} jobs one after another: {figures['total']:.1f} s; load {figures['load']:.1f}")
    if figures["idle"] is not None:
        print(f"idle: {figures['idle']:.3f} CPU seconds per second")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


if __name__ == "__main__":
    main()
