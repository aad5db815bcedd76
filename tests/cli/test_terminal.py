"""What commands show, on a terminal and elsewhere."""

import json
import os
import pty
import subprocess
import sys

import pytest

from wan_orchestration.cli.terminal import CommandFailed, ProgressLine, print_table, reports_errors
from wan_orchestration.errors import BadInput

ON_A_TERMINAL = """
import sys, time
from contextlib import redirect_stdout
from wan_orchestration.cli.terminal import ProgressLine
with redirect_stdout(sys.stderr), ProgressLine() as line:
    line.show("loading [all]")
    time.sleep(0.3)  # the bar is drawn ten times a second
    print("a library's words")
    line.log("a line that stays")
    line.show("half way", 0.5)
print("{}")
"""


def on_a_terminal(code: str, **variables: str) -> tuple[str, str]:
    """Stdout of a Python process, and what it writes to a terminal."""
    terminal, stderr = pty.openpty()
    environment = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    environment |= {"TERM": "xterm-256color", "COLUMNS": "80", **variables}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=stderr)
    os.close(stderr)
    written = b""
    try:
        while chunk := os.read(terminal, 4096):
            written += chunk
    except OSError:
        pass  # Linux ends a terminal that nobody writes to like this.
    finally:
        os.close(terminal)
    return process.communicate()[0].decode(), written.decode()


def test_a_bar_on_a_terminal():
    stdout, shown = on_a_terminal(ON_A_TERMINAL)
    assert stdout == "{}\n"
    for words in ("loading [all]", "a library's words\r\n", "a line that stays\r\n", "half way", "━"):
        assert words in shown
    # The bar is erased, and the cursor visible.
    assert shown.endswith("\x1b[2K") and shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")


def test_plain_lines_on_a_terminal_that_cannot_move_its_cursor():
    _, shown = on_a_terminal(ON_A_TERMINAL, TERM="dumb")
    assert "loading [all]\r\n" in shown and "\x1b" not in shown


def test_plain_lines_now_and_then_elsewhere(capsys):
    with ProgressLine() as line:
        line.show("first", 0.1)
        line.show("too soon", 0.2)
        line.show("last", 1.0, always=True)
        line.log("a line")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "first\nlast\na line\n")


def test_a_table_that_is_piped_is_neither_wrapped_nor_cut(capsys):
    words = "words " * 100
    print_table(("job", "seconds", ""), [("a", "1", f"{words}[end]"), ("b", "100", "")], numbers=["seconds"])
    assert capsys.readouterr().out == f"job  seconds\na          1  {words}[end]\nb        100\n"


@pytest.mark.parametrize(
    "error, code, words",
    [
        (BadInput("--flag: bad"), 1, "error: --flag: bad\n"),
        (CommandFailed("no answer"), 1, "error: no answer\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_errors_become_exit_codes(error, code, words, capsys):
    @reports_errors(as_json=lambda argv, message: {"error": message} if "--json" in argv else None)
    def command(argv):
        raise error

    assert command([]) == code
    assert capsys.readouterr() == ("", words)
    assert command(["--json"]) == code
    assert not words or f"error: {json.loads(capsys.readouterr().out)['error']}\n" == words


def test_commands_do_not_wait_for_rich_before_they_show_something():
    code = "import sys; from wan_orchestration import infer; from wan_orchestration.cli import preprocess"
    subprocess.run([sys.executable, "-c", f"{code}; assert 'rich' not in sys.modules"], check=True)
