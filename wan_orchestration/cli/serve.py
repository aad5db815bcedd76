"""`wan-animate serve`: the API and its page, and with `--dagster` also Dagster."""

import ipaddress
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

import uvicorn

from wan_orchestration.api.services import api_settings
from wan_orchestration.cli.dagster_command import open_instance
from wan_orchestration.cli.flags import Parser
from wan_orchestration.cli.terminal import reports_errors
from wan_orchestration.errors import BadInput
from wan_orchestration.launch.processes import managed_process
from wan_orchestration.settings.environment import DagsterHome

STOP_SECONDS = 10
"""How long Dagster may take to stop by itself."""


@reports_errors()
def serve(argv: Sequence[str]) -> None:
    """`wan-animate serve`."""
    parser = Parser("wan-animate serve", description="Serve the HTTP API and its page.")
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1); others need WAN_API_TOKEN")
    add("--port", type=int, default=8000, help="default: 8000")
    add("--dagster", action="store_true", help="also start Dagster's UI, and its daemon, which runs the jobs")
    add("--dagster-port", type=int, default=3000, help="of Dagster's UI, on 127.0.0.1 (default: 3000)")
    arguments = parser.parse_args(argv)
    check_host(arguments.host)
    if not arguments.dagster:
        run(arguments.host, arguments.port)
        return
    signal.signal(signal.SIGTERM, end)
    with dagster(arguments.dagster_port):
        run(arguments.host, arguments.port)


def end(number: int, frame: FrameType | None) -> NoReturn:
    """Handles SIGTERM, which uvicorn raises again when it has stopped. SystemExit then stops Dagster too."""
    raise SystemExit(128 + number)


def check_host(host: str) -> None:
    """BadInput: other machines can reach the address, and there is no token."""
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = host == "localhost"
    if not local and api_settings().token is None:
        raise BadInput(
            f"--host {host}: other machines could reach the server; set WAN_API_TOKEN to a secret of 16 characters or "
            'more first, for example: export WAN_API_TOKEN="$(openssl rand -hex 24)"'
        )


def run(host: str, port: int) -> None:
    """Serve until a signal stops the process."""
    from wan_orchestration.api import app  # noqa: PLC0415 (reads its settings when it is imported)

    print(f"The page: http://{f'[{host}]' if ':' in host else host}:{port}/", flush=True)
    uvicorn.run(app, host=host, port=port, server_header=False, timeout_graceful_shutdown=10)


@contextmanager
def dagster(port: int) -> Iterator[None]:
    """Runs Dagster's UI and daemon during the block. BadInput: this is not the project's root folder."""
    if not Path("workspace.yaml").is_file():
        raise BadInput("workspace.yaml: no such file; start this in the project's root folder")
    # The API and Dagster must not both create the databases of a new instance.
    open_instance().dispose()
    environment = {**os.environ, "DAGSTER_HOME": str(DagsterHome().home.absolute())}
    command = [sys.executable, "-m", "dagster", "dev", "-h", "127.0.0.1", "-p", str(port)]
    with managed_process(command, environment, STOP_SECONDS):
        yield
