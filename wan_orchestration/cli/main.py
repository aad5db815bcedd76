"""`wan-animate`: finds the command and runs it."""

import argparse
import importlib
import sys
from collections.abc import Sequence

COMMANDS = {
    "demo": ("wan_orchestration.cli.run", "demo", "make the video of data/jobs/demo with the mini weights"),
    "run": ("wan_orchestration.cli.run", "run", "make the video of one job through Dagster"),
    "batch": ("wan_orchestration.cli.batch", "main", "make all videos that are missing or out of date"),
    "serve": ("wan_orchestration.cli.serve", "serve", "serve the HTTP API and its page"),
    "submit": ("wan_orchestration.cli.remote", "submit", "ask a server for a video"),
    "start": ("wan_orchestration.cli.remote", "start", "make the video of a server's job whose clips you looked at"),
    "status": ("wan_orchestration.cli.remote", "status", "show one job of a server, or list its jobs"),
    "wait": ("wan_orchestration.cli.remote", "wait", "show the progress of a server's job until it ends"),
    "fetch": ("wan_orchestration.cli.remote", "fetch", "download the video of a server's job"),
    "cancel": ("wan_orchestration.cli.remote", "cancel", "cancel a server's job"),
    "workers": ("wan_orchestration.cli.workers", "main", "list or stop the launches that hold devices"),
    "preprocess": ("wan_orchestration.cli.preprocess", "main", "make clips from a driving video and a picture"),
    "preview": ("wan_orchestration.cli.preprocess", "preview", "write a video that shows clips side by side"),
    "plan": ("wan_orchestration.cli.plan", "main", "show how the models fit this machine, or one that you describe"),
    "infer": ("wan_orchestration.infer", "main", "make the video of one job without Dagster, print the result as JSON"),
}
"""Module, function and help text of each command."""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(
        "wan-animate",
        usage="wan-animate COMMAND ...",
        description="Character animation with Wan2.2-Animate and Wan-Animate-2.",
        epilog="\n".join(f"  {name:12}{text}" for name, (_, _, text) in COMMANDS.items())
        + "\n\n`wan-animate COMMAND --help` shows the flags of a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="one of these:")
    module, function, _ = COMMANDS[parser.parse_args(argv[:1]).command]
    # Only this command's modules are imported: the imports of some take seconds.
    return getattr(importlib.import_module(module), function)(argv[1:])


if __name__ == "__main__":
    sys.exit(main())
