"""Runs parts one after the other, each in its own process and with a time limit. No part can stop another."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import psutil

from gpu_parts.record import Work, append, read, results_file

BENCHMARKS = Path(__file__).parents[1]
LOG_CHARACTERS = 100_000
"""Length of each part's output, at its end, that is kept."""
SLACK, SLACK_OF_CPUS = 1.5, 6.0
"""Time limit of a part, as a multiple of its expected seconds. In a rehearsal most time goes into loading libraries."""
LEAVE_SECONDS = 3.0
"""Reserved for the table at the end."""


@dataclass(frozen=True)
class Part:
    """A function that measures something.

    seconds: expected on an H100.
    where: the function, as module:function.
    correctness: whether its failure fails the whole check.
    cache: name of the cache folder, for parts that share one.
    beside: whether it runs at the same time as the part after it.
    """

    name: str
    seconds: float
    where: str
    correctness: bool = False
    cache: str = ""
    beside: bool = False


@dataclass
class Running:
    part: Part
    process: subprocess.Popen[bytes]
    log: IO[bytes]
    started: float
    limit: float
    until: float
    cut: bool
    """Whether the deadline ends it before its own limit."""


def run(parts: Sequence[Part], work: Work, deadline: float, show: Callable[[], None]) -> bool:
    """Run the parts. Returns True if no correctness part failed.

    `deadline` is a `time.monotonic` value. `show` is called after each part, when its rows are written.
    """
    forget(work.out, {part.name for part in parts})
    good = True
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as scratch:
        group: list[Part] = []
        for part in parts:
            group.append(part)
            if part.beside and part is not parts[-1]:
                continue
            good &= _run_together(group, work, Path(scratch), deadline - LEAVE_SECONDS)
            group = []
            show()
    return good


def forget(out: Path, names: set[str]) -> None:
    """Drop the rows that an earlier check wrote for these parts."""
    kept = [row for row in read(out) if row["part"] not in names]
    results_file(out).unlink(missing_ok=True)
    for row in kept:
        append(out, row)


def _run_together(group: list[Part], work: Work, scratch: Path, deadline: float) -> bool:
    left = deadline - time.monotonic()
    if left < group[-1].seconds / 2:
        for part in group:
            _end(work.out, part, "skipped", f"no time: {max(0, left):.0f} s left of about {part.seconds:.0f} s", 0.0)
        return True
    with ExitStack() as stack:
        running = []
        for part in group:
            running.append(_start(part, work, scratch, deadline))
            stack.callback(kill, running[-1].process)
        good = [_wait(one, work) for one in running]
        return all(good)


def _start(part: Part, work: Work, scratch: Path, deadline: float) -> Running:
    own, caches = scratch / part.name, scratch / "cache" / (part.cache or part.name)
    own.mkdir(exist_ok=True)
    caches.mkdir(parents=True, exist_ok=True)
    paths = [str(BENCHMARKS), str(BENCHMARKS.parent), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "WAN_CACHE_ROOT": str(caches / "wan"),
        "TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor"),
        "TRITON_CACHE_DIR": str(caches / "triton"),
        "HF_HUB_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
    }
    if work.device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    told = replace(work, scratch=own).dumps()
    print(f"{part.name} ...", flush=True)
    log = tempfile.TemporaryFile()  # noqa: SIM115 (closed by _wait)
    now = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "gpu_parts.process", part.name, part.where, told],
        stdout=log,
        stderr=subprocess.STDOUT,
        env=environment,
        cwd=own,  # so that a part neither imports from nor writes to the folder where the check was started
        start_new_session=True,
    )
    limit = part.seconds * (SLACK_OF_CPUS if work.tiny else SLACK)
    until = min(now + limit, deadline)
    return Running(part, process, log, now, limit, until, cut=until < now + limit)


def _wait(one: Running, work: Work) -> bool:
    """Wait for a part and record how it ended. Returns False if it is a correctness part and failed."""
    killed = False
    try:
        one.process.wait(max(0.0, one.until - time.monotonic()))
    except subprocess.TimeoutExpired:
        killed = True
    kill(one.process)
    seconds = time.monotonic() - one.started
    said = _keep_log(one, work.out)
    rows = [row for row in read(work.out) if row["part"] == one.part.name]
    status, why = _verdict(one, rows, killed, said)
    _end(work.out, one.part, status, why, seconds)
    return not (one.part.correctness and status == "failed")


def _verdict(one: Running, rows: list[dict[str, Any]], killed: bool, said: str) -> tuple[str, str]:
    missed = [row["what"] for row in rows if row.get("check") and not row["met"]]
    if missed:
        return "failed", "; ".join(missed)
    if killed and one.cut:
        return "cut off", "by the deadline"
    if killed:
        return "failed", f"killed after {one.limit:.0f} s"
    if one.process.returncode:
        return "failed", "\n".join(said.strip().splitlines()[-5:])[-1000:] or f"exit code {one.process.returncode}"
    skipped = next((row["skipped"] for row in rows if "skipped" in row), None)
    return ("done", "") if skipped is None else ("skipped", skipped)


def _end(out: Path, part: Part, status: str, why: str, seconds: float) -> None:
    append(out, {"part": part.name, "status": status, "why": why, "seconds": round(seconds, 1)})
    print(f"{part.name}: {status} after {seconds:.0f} s" + (f": {why}" if why else ""), flush=True)


def _keep_log(one: Running, out: Path) -> str:
    """Append a part's output to the common log. Returns its end."""
    with one.log:
        one.log.seek(max(0, one.log.seek(0, os.SEEK_END) - LOG_CHARACTERS))
        said = one.log.read().decode(errors="replace")
    with (out / "check.log").open("a") as log:
        log.write(f"===== {one.part.name}\n{said}\n")
    return said


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a part and all processes it started, also those in other sessions."""
    children: list[psutil.Process] = []
    with suppress(psutil.Error):
        children = psutil.Process(process.pid).children(recursive=True)
    # The process group outlives the part while a child runs.
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for child in children:
        with suppress(psutil.Error):
            child.kill()
    process.wait()
