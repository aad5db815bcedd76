"""Runs `dagster` commands from a shell, on the instance of DAGSTER_HOME."""

import os
import re
import shlex
import subprocess
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

import dagster as dg

from wan_orchestration.cli.terminal import CommandFailed
from wan_orchestration.defs.failures import reason
from wan_orchestration.errors import BadInput
from wan_orchestration.settings.environment import DagsterHome

MODULE = ("-m", "wan_orchestration.definitions")

LOG_LINE = re.compile(
    r"\S+ \S+ \S+ - dagster - (INFO|WARNING|ERROR) - \S+ - (?P<run>[0-9a-f-]{36}) - ((?P<event>\d+) - )?(?P<text>.*)"
)
"""A line of Dagster's log. Events have a process id before their text; only the UI shows them."""

NOISE = ("[pipes]", "Traceback (most recent call last)", "Skipping step")
"""Lines of the log with one of these are not shown."""

TAIL_LINES = 20
"""How many last lines of the log are shown as the reason if Dagster gives none."""


class RunFailed(CommandFailed):
    """A Dagster run did not succeed; the message says why."""


def open_instance() -> dg.DagsterInstance:
    """The instance of DAGSTER_HOME. BadInput: there is none."""
    home = DagsterHome().home.absolute()
    if not (home / "dagster.yaml").is_file():
        raise BadInput(
            f"{home / 'dagster.yaml'}: no such file; run this in the project's root folder, or set DAGSTER_HOME"
        )
    return dg.DagsterInstance.from_config(str(home))


def variables_of(instance: dg.DagsterInstance) -> dict[str, str]:
    """Environment variables that make a `dagster` command use this instance."""
    return {"DAGSTER_HOME": instance.root_directory}


def execute(instance: dg.DagsterInstance, command: Sequence[str], variables: Mapping[str, str]) -> None:
    """Run a `dagster` command that makes one run, and print the lines of its log that matter to the user.

    `variables` are added to this process's environment. RunFailed: the command failed.
    """
    run_id, tail = None, deque(maxlen=TAIL_LINES)
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


def in_shell(command: Sequence[str], variables: Mapping[str, str]) -> str:
    """A command and its environment variables as a user can type them."""
    settings = [f"{name}={_quoted(value)}" for name, value in variables.items()]
    return " ".join([*settings, shlex.join(command)])


def _quoted(value: str) -> str:
    """A value quoted for a shell; a path in the working directory begins with $PWD."""
    path, here = Path(value), Path.cwd()
    if path.is_relative_to(here):
        return f'"$PWD"/{shlex.quote(str(path.relative_to(here)))}'
    return shlex.quote(value)
