"""What commands show on the terminal: progress, tables, errors and exit codes.

Functions import rich when they show something: the import takes 0.1 s, and `--help` should not wait for it.
"""

import json
import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any, Self

from wan_orchestration.errors import BadInput

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

PIPED_WIDTH = 100_000
"""Columns of a table that is not shown on a terminal, so that no line is wrapped or cut."""


class CommandFailed(Exception):
    """A command could not do its work; the message says why."""


class ProgressLine:
    """Progress on stderr: a live bar on a terminal, a plain line every few seconds elsewhere.

    It is a context manager, so that an error does not leave the bar on the terminal.
    """

    def __init__(self, quiet_seconds: float = 5.0) -> None:
        """`quiet_seconds`: least time between two plain lines."""
        self.live = sys.stderr.isatty() and _stderr().is_interactive
        self._quiet_seconds = quiet_seconds
        self._printed = float("-inf")
        self._bar: tuple[Progress, TaskID] | None = None

    def show(self, text: str, fraction: float | None = None, always: bool = False) -> None:
        """Show how far the work is.

        Args:
            fraction: done so far, 0 to 1; None: unknown.
            always: print the plain line even if the last one is not `quiet_seconds` ago.
        """
        if self.live:
            progress, task = self._bar = self._bar or _open_bar()
            if fraction is not None:
                progress.update(task, total=1.0, completed=fraction)
            progress.update(task, description=text)
        elif always or time.monotonic() - self._printed >= self._quiet_seconds:
            print(text, file=sys.stderr, flush=True)
            self._printed = time.monotonic()

    def log(self, message: str) -> None:
        """Print a line that stays, above the bar."""
        if self._bar:
            self._bar[0].console.print(message, markup=False, highlight=False, soft_wrap=True)
        else:
            print(message, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Remove the bar."""
        if self._bar:
            self._bar[0].stop()
            self._bar = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _stderr() -> "Console":
    from rich.console import Console

    return Console(stderr=True)


def _open_bar() -> "tuple[Progress, TaskID]":
    from rich.progress import BarColumn, Progress, TextColumn

    progress = Progress(
        BarColumn(bar_width=30),
        TextColumn("{task.description}", markup=False),
        console=_stderr(),
        transient=True,
    )
    progress.start()
    # A killed process could not show the cursor again.
    progress.console.show_cursor(True)
    return progress, progress.add_task("", total=None)


def print_table(headings: Sequence[str], rows: Iterable[Sequence[str]], numbers: Collection[str] = ()) -> None:
    """Print a table on stdout, without lines between its cells.

    Args:
        numbers: headings of the columns that are aligned right.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    live = sys.stdout.isatty()
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for heading in headings:
        table.add_column(heading, justify="right" if heading in numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    console = Console(force_terminal=live, width=None if live else PIPED_WIDTH, highlight=False)
    with console.capture() as capture:
        console.print(table)
    for line in capture.get().splitlines():
        print(line.rstrip())


def print_error(message: str) -> None:
    """Print an error on stderr."""
    if not sys.stderr.isatty():
        print(f"error: {message}", file=sys.stderr, flush=True)
        return
    from rich.text import Text

    _stderr().print(Text.assemble(("error:", "bold red"), f" {message}"), soft_wrap=True)


Command = Callable[[Sequence[str]], int | None]


def reports_errors(
    as_json: Callable[[Sequence[str], str], Mapping[str, Any] | None] = lambda argv, error: None,
) -> Callable[[Command], Callable[[Sequence[str]], int]]:
    """Decorates a command: it prints its errors without a traceback and returns its exit code.

    The code is 0 if the command returns None, 1 after BadInput and CommandFailed, and 130 after Ctrl+C.

    Args:
        as_json: makes a JSON object from the flags and the message, which is also printed on stdout; None: nothing.
    """

    def decorate(command: Command) -> Callable[[Sequence[str]], int]:
        @wraps(command)
        def run(argv: Sequence[str]) -> int:
            try:
                return command(argv) or 0
            except (BadInput, CommandFailed) as error:
                if (answer := as_json(argv, str(error))) is not None:
                    print(json.dumps(answer, ensure_ascii=False, indent=2))
                print_error(str(error))
                return 1
            except KeyboardInterrupt:
                return 130

        return run

    return decorate
