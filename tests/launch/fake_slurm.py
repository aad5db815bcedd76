"""A stand-in for sbatch, srun, squeue, scancel and sinfo: `fake_slurm.py NAME ARGUMENTS`.

Jobs really run, on this machine; $FAKE_SLURM/<id>.json holds their state. Other files there cause errors: every command
fails with the text in `unreachable`, sbatch with the text in `refuses`; jobs soon end in the state in `ends`. `slots`
has the number of jobs that run at the same time, `left` the time until their limit.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

HOME = Path(os.environ["FAKE_SLURM"])


def options(words):
    return dict(word[2:].split("=", 1) for word in words if word.startswith("--") and "=" in word)


def jobs():
    return {file.stem: json.loads(file.read_text()) for file in sorted(HOME.glob("*.json"))}


def save(number, job):
    part = HOME / f"{number}.{os.getpid()}"
    part.write_text(json.dumps(job))
    part.rename(HOME / f"{number}.json")


def content(name, default):
    file = HOME / name
    return type(default)(file.read_text()) if file.exists() else default


def answer(file):
    with contextlib.suppress(FileNotFoundError):
        sys.exit(file.read_text())


def sbatch(words):
    answer(HOME / "refuses")
    number = str(len(jobs()) + 1)
    *flags, script = words
    given = options(flags)
    with Path(given["output"]).open("a") as log:
        command = [sys.executable, "-S", __file__, "run", number, script]
        pid = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True).pid
    save(
        number,
        {"name": given["job-name"], "words": words, "state": "PENDING", "limit": given.get("time", "1:00"), "pid": pid},
    )
    print(number)


def run(words):
    """Runs a batch script to its end, as slurmd does."""
    number, script = words
    while number not in jobs() or sum(job["state"] == "RUNNING" for job in jobs().values()) >= content("slots", 99):
        time.sleep(0.05)
    save(number, {**jobs()[number], "state": "RUNNING"})
    process = subprocess.Popen(["bash", script], env={**os.environ, "SLURM_JOB_ID": number, "SLURM_CPUS_ON_NODE": "2"})
    while process.poll() is None:
        if (HOME / "ends").exists():
            process.kill()
        time.sleep(0.05)
    state = (HOME / "ends").read_text() if (HOME / "ends").exists() else None
    state = state or ("FAILED" if process.returncode else "COMPLETED")
    save(number, {**jobs()[number], "state": state})


def srun(words):
    """Starts the worker without torchrun, which takes seconds to start."""
    torchrun = words.index("torch.distributed.run")
    python, worker = words[torchrun - 2], words[words.index("-m", torchrun) :]
    os.execv(python, [python, *worker])


def squeue(words):
    given = options(words)
    for number, job in jobs().items():
        shown = number == given["jobs"] if "jobs" in given else job["name"] == given["name"]
        if shown and ("jobs" in given or job["state"] in ("PENDING", "RUNNING", "COMPLETING")):
            print("|".join([number, job["state"], "None", job["limit"], content("left", "UNLIMITED"), "n[1-2]"]))
            return
    if "jobs" in given:
        sys.exit("slurm_load_jobs error: Invalid job id specified")


def scancel(words):
    for number, job in jobs().items():
        if job["name"] == options(words)["name"] and job["state"] in ("PENDING", "RUNNING"):
            os.killpg(job["pid"], signal.SIGKILL)
            save(number, {**job, "state": "CANCELLED"})


def sinfo(words):
    print("n1 idle\nn2 down*")


if __name__ == "__main__":
    name, *arguments = sys.argv[1:]
    if name not in ("srun", "run"):
        answer(HOME / "unreachable")
    globals()[name](arguments)
