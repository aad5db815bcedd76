"""`wan-animate workers`: the launches of this user on this machine, those that work and those that stay warm."""

import argparse
import json
from collections.abc import Sequence

from wan_orchestration.cli.terminal import print_table, reports_errors
from wan_orchestration.errors import BadInput
from wan_orchestration.protocol import launches
from wan_orchestration.protocol.launches import LaunchInfo


@reports_errors()
def main(argv: Sequence[str]) -> None:
    """`wan-animate workers [list]` and `wan-animate workers stop`."""
    parser = argparse.ArgumentParser(
        "wan-animate workers",
        description="List or stop the launches of this machine: those that work, and those that stay warm.",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    listing = commands.add_parser("list", help="list them; the default")
    stopping = commands.add_parser("stop", help="end them, each after its present jobs")
    for one in (parser, listing):
        one.add_argument("--json", action="store_true", help="print JSON")
    stopping.add_argument("id", nargs="*", help="launches to stop (default: all)")
    stopping.add_argument("--now", action="store_true", help="do not wait for their jobs, which are then retried")
    arguments = parser.parse_args(argv)
    if arguments.command == "stop":
        stop(arguments.id, arguments.now)
    else:
        show(launches.running(memory=True), arguments.json)


def show(found: Sequence[LaunchInfo], as_json: bool) -> None:
    """Print the launches."""
    if as_json:
        print(json.dumps([one.model_dump(mode="json", exclude={"key"}) for one in found], indent=2))
    elif found:
        print_table(launches.COLUMNS, [[str(cell) for cell in one.row().values()] for one in found], numbers={"jobs"})
    else:
        print("There are no launches.")


def stop(ids: Sequence[str], now: bool) -> None:
    """End launches. BadInput: there is none of this name."""
    found = {one.id: one for one in launches.running()}
    if unknown := [name for name in ids if name not in found]:
        raise BadInput(f"{unknown[0]}: there is no such launch; there are: {', '.join(found) or 'none'}")
    for one in [found[name] for name in ids] if ids else found.values():
        launches.stop(one, now)
        waits = one.state == "working" and not now
        print(f"{one.id}: {'ends after its jobs' if waits else 'ends'}")
