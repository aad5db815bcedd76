"""`wan-animate preprocess` and `wan-animate preview`: clips from a driving video and a picture, from a shell."""

import argparse
import json
import logging
import sys
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path

from wan_orchestration.cli.flags import Parser, add_settings, given_settings
from wan_orchestration.errors import BadInput, validate
from wan_orchestration.settings.environment import Environment, environment
from wan_orchestration.settings.preprocess import PreprocessSettings
from wan_orchestration.settings.variables import take_in
from wan_orchestration.weights import hub


def main(argv: Sequence[str] | None = None) -> int:
    """`wan-animate preprocess`; returns the exit code and prints one JSON object."""
    try:
        arguments = parse(argv)
        with redirect_stdout(sys.stderr):
            result = run(arguments)
    except BadInput as error:
        return fail(error)
    print(result)
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        "wan-animate preprocess",
        description="Make pose and face clips from a driving video and a picture, and print what was made as JSON.",
    )
    add = parser.add_argument
    add("--driving", type=Path, required=True, metavar="VIDEO", help="a video of a person moving")
    add("--reference", type=Path, required=True, metavar="PICTURE", help="a picture of the character")
    add("--output", type=Path, required=True, metavar="DIR", help="folder of the clips; an older one is replaced")
    add("--checkpoint-dir", type=Path, metavar="DIR", help="a snapshot to use as it is (default: WAN_CHECKPOINT_DIR)")
    add("--replace", dest="mode", action="store_const", const="replace", help="the same as --mode replace")
    add_settings(parser, PreprocessSettings)
    return parser.parse_args(argv)


def run(arguments: argparse.Namespace) -> str:
    """Make the clips; returns what was made as JSON. BadInput."""
    from wan_orchestration.preprocess.pipeline import preprocess  # noqa: PLC0415 (OpenCV and the estimators)

    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    for name in ("driving", "reference"):
        if not (path := getattr(arguments, name)).is_file():
            raise BadInput(f"--{name} {path}: there is no such file")
    settings = take_in(
        PreprocessSettings,
        given_settings(arguments, PreprocessSettings),
        lambda field: f"--{field.replace('_', '-')}",
    )
    env = environment()
    if arguments.checkpoint_dir:
        env = validate(Environment, {"checkpoint_dir": arguments.checkpoint_dir})
    assert env.models_root is not None
    bar = Bar()
    result = preprocess(
        arguments.driving,
        arguments.reference,
        arguments.output.absolute(),
        settings,
        snapshot=hub.local_snapshot(env),
        models_root=env.models_root,
        log=bar.log,
        progress=bar.show,
    )
    bar.end()
    return result.model_dump_json(indent=2)


class Bar:
    """Progress on stderr: a bar on a terminal, a line now and then elsewhere."""

    quiet_seconds = 5.0
    width = 30

    def __init__(self) -> None:
        self.live = sys.stderr.isatty()
        self.shown = float("-inf")

    def log(self, message: str) -> None:
        print(("\r\033[K" if self.live else "") + message, file=sys.stderr, flush=True)

    def show(self, phase: str, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self.shown < (0.1 if self.live else self.quiet_seconds) and done < total:
            return
        self.shown = now
        if self.live:
            filled = self.width * done // max(total, 1)
            bar = "#" * filled + "." * (self.width - filled)
            print(f"\r\033[K{phase:10}[{bar}] {done}/{total}", end="", file=sys.stderr, flush=True)
        else:
            print(f"{phase}: {done} of {total} frames", file=sys.stderr, flush=True)

    def end(self) -> None:
        if self.live:
            print(file=sys.stderr)


def preview(argv: Sequence[str] | None = None) -> int:
    """`wan-animate preview`; returns the exit code and prints the path of the check video."""
    parser = Parser(
        "wan-animate preview", description="Write a check video of clips: source, skeleton, face and mask side by side."
    )
    parser.add_argument("clips", type=Path, metavar="DIR", help="a folder of clips, for instance data/clips/my-job")
    parser.add_argument("--driving", type=Path, metavar="VIDEO", help="the driving video, to show it beside them")
    parser.add_argument("--output", type=Path, metavar="FILE.mp4", help="the video (default: DIR/preview.mp4)")
    try:
        arguments = parser.parse_args(argv)
        from wan_orchestration.preprocess.side_by_side import write_side_by_side  # noqa: PLC0415 (OpenCV)

        with redirect_stdout(sys.stderr):
            path = write_side_by_side(
                arguments.clips, arguments.output or arguments.clips / "preview.mp4", arguments.driving
            )
    except BadInput as error:
        return fail(error)
    print(path)
    return 0


def fail(error: BadInput) -> int:
    print(json.dumps({"status": "failed", "error": str(error)}, ensure_ascii=False, indent=2))
    print(f"error: {error}", file=sys.stderr)
    return 1
