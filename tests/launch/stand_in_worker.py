"""The real worker with a stand-in engine. The first job's name selects one of the functions below."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

from wan_orchestration.protocol.messages import Progress, Request, Result
from wan_orchestration.worker import main


def succeed(request: Request, reporter):
    """Writes more output than a pipe holds, on both streams, and succeeds."""
    for stream in (sys.stdout, sys.stderr):
        stream.write("x" * 300_000 + "\n")
    for task in request.tasks:
        for step in range(4):
            reporter.progress(
                Progress(job_id=task.job_id, phase="denoising", segment=1, segments=1, step=step, steps=4)
            )
            time.sleep(0.2)
        reporter.log(f"devices: {os.environ.get('WAN_LEASES')}")
        reporter.log(f"threads: {os.environ['OMP_NUM_THREADS']}")
        reporter.log(f"process: {os.getpid()}, warm: {request.warm}")
        reporter.finished(Result(job_id=task.job_id, status="succeeded", created_at=task.created_at))


def patient(request: Request, reporter):
    """Writes down its process id, works until it is cancelled, and writes that down."""
    folder = request.tasks[0].output
    (folder / "pids.part").write_text(f"{os.getppid()} {os.getpid()}")
    (folder / "pids.part").rename(folder / "pids")
    while not is_cancelled():
        time.sleep(0.05)
    (folder / "cancelled").write_text(request.tasks[0].job_id)


def gated(request: Request, reporter):
    """Succeeds once there is a file `go`."""
    while not (request.tasks[0].output / "go").exists():
        time.sleep(0.05)
    succeed(request, reporter)


def clock(request: Request, reporter):
    """Writes down the device, and when the job began and ended."""
    (task,) = request.tasks
    began = time.time()
    time.sleep(1)
    times = f"{Path(os.environ['WAN_LEASES']).name} {began} {time.time()}"
    (task.output / f"{task.job_id}.times").write_text(times)
    reporter.finished(Result(job_id=task.job_id, status="succeeded", created_at=task.created_at))


def crash(request: Request, reporter):
    os._exit(3)


def linger(request: Request, reporter):
    """Hangs after it has reported the result."""
    (task,) = request.tasks
    reporter.finished(Result(job_id=task.job_id, status="succeeded", created_at=task.created_at))
    time.sleep(600)


def mute(request: Request, reporter):
    """Ends without a result."""


def stubborn(request: Request, reporter):
    """Ignores SIGTERM and SIGINT, as does a process that it starts; writes their ids to a file."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    children = []
    if request.tasks[0].job_id.endswith("with-child"):
        children = [subprocess.Popen(["sleep", "600"]).pid]
    written = request.tasks[0].output / "pids.part"
    written.write_text(" ".join(map(str, [os.getppid(), os.getpid(), *children])))
    written.rename(Path(request.tasks[0].output) / "pids")
    time.sleep(600)


def run(requests, cancelled=None, networks=None):
    global is_cancelled
    is_cancelled = cancelled
    for request, reporter in requests or ():
        globals()[request.tasks[0].job_id.split("-")[0]](request, reporter)


engine = ModuleType("wan_orchestration.generate.runner")
vars(engine)["run"] = run
sys.modules[engine.__name__] = engine

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
