"""Runs one job through Dagster from a shell: `wan-animate run` and `wan-animate demo`.

The work is done by the plain `dagster asset materialize` command, which is shown. What is added here: the job becomes a
partition (the `drop_folder` sensor does that where `dagster dev` runs), and the output is cut down to what matters.
"""

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg

from wan_orchestration.defs.failures import reason
from wan_orchestration.defs.partitions import register
from wan_orchestration.errors import BadInput
from wan_orchestration.jobs.folder import Job, check_key
from wan_orchestration.protocol.messages import Result
from wan_orchestration.settings.environment import DagsterHome, environment

ASSETS = ("weight_snapshot", "preprocessed_clips", "generated_video")
DEMO_WEIGHTS = "wan-animate-mini"

# As the mini model was trained: short clips, of which few steps are enough.
DEMO_SETTINGS = {"sampling_steps": 6, "clip_len": 17}

# A line of Dagster's log. Events have a process id before their text: they are left to the UI.
LOG_LINE = re.compile(
    r"\S+ \S+ \S+ - dagster - (INFO|WARNING|ERROR) - \S+ - (?P<run>[0-9a-f-]{36}) - ((?P<event>\d+) - )?(?P<text>.*)"
)


NOISE = ("[pipes]", "Traceback (most recent call last)", "Skipping step")


class RunFailed(Exception):
    """A process that did not succeed; the message says why."""


def run(argv: Sequence[str]) -> int:
    """`wan-animate run JOB`; returns the exit code."""
    parser = argparse.ArgumentParser("wan-animate run", description="Make the video of one job through Dagster.")
    parser.add_argument("job", help="name of a folder in data/jobs")
    job = parser.parse_args(argv).job
    return in_words(lambda: materialize(job, {}, {}))


def demo(argv: Sequence[str]) -> int:
    """`wan-animate demo`; returns the exit code."""
    argparse.ArgumentParser(
        "wan-animate demo", description="Make the video of data/jobs/demo with the mini weights, through Dagster."
    ).parse_args(argv)
    return in_words(make_demo)


def make_demo() -> None:
    """Make the demo job's video. BadInput, RunFailed."""
    env = environment()
    Job.open(env.jobs_root / "demo")
    weights = env.data_root / "models" / DEMO_WEIGHTS
    if not weights.is_dir():
        raise BadInput(f"{weights}: the demo's weights are part of the project, but are not here; get its data/models")
    materialize("demo", {"WAN_CHECKPOINT_DIR": str(weights)}, DEMO_SETTINGS)
    print(
        "\nThe model is a mini one, trained on drawn figures (mini/README.md); all else is as with the 14B weights.\n"
        "With those, downloaded from ModelScope or named by WAN_CHECKPOINT_DIR, the same job is made by:\n"
        "  uv run wan-animate run demo"
    )


def materialize(key: str, variables: Mapping[str, str], settings: Mapping[str, Any]) -> None:
    """Make a job's video on the instance of DAGSTER_HOME, and say where it is. BadInput, RunFailed.

    `variables` are set for the run beside this process's environment, `settings` win over the job's own.
    """
    env = environment()
    Job.open(env.jobs_root / check_key(key))
    instance = open_instance()
    register(instance, key)

    variables = {"DAGSTER_HOME": str(DagsterHome().home.absolute()), **variables}
    command = ["dagster", "asset", "materialize", "-m", "wan_orchestration.definitions"]
    command += ["--select", ",".join(ASSETS), "--partition", key]
    if settings:
        command += ["--config-json", json.dumps({"ops": {"generated_video": {"config": settings}}})]
    print(
        f"Materializing {', '.join(ASSETS)} of job {key}:\n  {shown(variables, ['uv', 'run', *command])}\n", flush=True
    )
    execute(instance, command, variables)

    result = Result.model_validate_json((env.videos_root / key / "result.json").read_bytes())
    print(
        f"\nThe video: {result.video_path}\n"
        f"  {result.frames} frames of {result.width}x{result.height} at {result.fps:g} per second, "
        f"made in {result.seconds.total:.1f} s on {result.device} ({result.dtype})\n"
        f"\nThe run, its checks and the video's history are in the UI, http://127.0.0.1:3000:\n"
        f"  {shown(variables, ['uv', 'run', 'dagster', 'dev'])}"
    )


def execute(instance: dg.DagsterInstance, command: Sequence[str], variables: Mapping[str, str]) -> None:
    """Run a `dagster` command that makes one run, its log cut down to what matters. RunFailed."""
    run_id, tail = None, deque(maxlen=20)
    with subprocess.Popen(
        [sys.executable, "-m", *command],
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            tail.append(line)
            if match := LOG_LINE.match(line):
                run_id = match["run"]
                if not match["event"] and not any(noise in match["text"] for noise in NOISE):
                    print(f"  {match['text']}", flush=True)
    if process.returncode:
        raise RunFailed((run_id and reason(instance, run_id)) or "".join(tail))


def open_instance() -> dg.DagsterInstance:
    """The instance of DAGSTER_HOME. BadInput: there is none."""
    home = DagsterHome().home.absolute()
    if not (home / "dagster.yaml").is_file():
        raise BadInput(
            f"{home / 'dagster.yaml'}: no such file; run this in the project's root folder, or set DAGSTER_HOME"
        )
    return dg.DagsterInstance.from_config(str(home))


def shown(variables: Mapping[str, str], command: Sequence[str]) -> str:
    """A command as it can be typed."""
    settings = [f"{name}={_short(value)}" for name, value in variables.items()]
    return " ".join([*settings, shlex.join(command)])


def _short(value: str) -> str:
    """A value for a shell; a path below the working directory by way of $PWD."""
    path, here = Path(value), Path.cwd()
    if path.is_relative_to(here):
        return f'"$PWD"/{shlex.quote(str(path.relative_to(here)))}'
    return shlex.quote(value)


def in_words(command: Callable[[], int | None]) -> int:
    """The exit code of a command, its errors without a traceback."""
    try:
        return command() or 0
    except (BadInput, RunFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
