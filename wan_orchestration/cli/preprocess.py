"""`wan-animate preprocess` makes clips from a driving video and a picture; `wan-animate preview` shows them."""

import argparse
import logging
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from wan_orchestration.cli.flags import Parser, add_settings, flag, given_settings
from wan_orchestration.cli.terminal import ProgressLine, reports_errors
from wan_orchestration.errors import BadInput, validate
from wan_orchestration.families.choose import FIRST, configured, family_of
from wan_orchestration.families.family import Family
from wan_orchestration.settings.environment import Environment, environment
from wan_orchestration.settings.generate import GenerateSettings
from wan_orchestration.settings.preprocess import PreprocessSettings
from wan_orchestration.settings.variables import read_with_variables, with_variables
from wan_orchestration.weights import hub


def failed(argv: Sequence[str], error: str) -> dict[str, str]:
    """The JSON object that a failed command prints."""
    return {"status": "failed", "error": error}


@reports_errors(as_json=failed)
def main(argv: Sequence[str]) -> None:
    """`wan-animate preprocess`; prints one JSON object."""
    arguments = parse(argv)
    # Libraries may print to stdout, which is kept for the JSON object.
    with redirect_stdout(sys.stderr), ProgressLine() as line:
        result = run(arguments, line)
    print(result)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The flags. BadInput: an unknown one, or a value of the wrong type."""
    parser = Parser(
        "wan-animate preprocess",
        description="Make clips from a driving video and a picture, and print what was made as JSON.",
    )
    add = parser.add_argument
    add("--driving", type=Path, required=True, metavar="VIDEO", help="a video of a person moving")
    add("--reference", type=Path, required=True, metavar="PICTURE", help="a picture of the character")
    add("--output", type=Path, required=True, metavar="DIR", help="folder of the clips; an existing one is replaced")
    add("--checkpoint-dir", type=Path, metavar="DIR", help="a snapshot to use as it is (default: WAN_CHECKPOINT_DIR)")
    add("--replace", dest="mode", action="store_const", const="replace", help="the same as --mode replace")
    add_settings(parser, PreprocessSettings)
    return parser.parse_args(argv)


def run(arguments: argparse.Namespace, line: ProgressLine) -> str:
    """Make the clips; returns what was made as JSON. BadInput."""

    def show(phase: str, done: int, total: int) -> None:
        line.show(f"{phase}: {done} of {total} frames", done / max(total, 1), always=done >= total)

    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    for name in ("driving", "reference"):
        if not (path := getattr(arguments, name)).is_file():
            raise BadInput(f"--{name} {path}: there is no such file")
    env = environment()
    if arguments.checkpoint_dir:
        env = validate(Environment, {"checkpoint_dir": arguments.checkpoint_dir})
    assert env.models_root is not None
    given = given_settings(arguments, PreprocessSettings)
    settings = with_variables(PreprocessSettings, given, flag, _family(given, env))
    try:
        (settings,) = settings.for_characters(1)
    except ValueError as error:
        raise BadInput(f"--mask-hints: {error}") from None
    # OpenCV and the estimators are imported here.
    result = settings.family.part("clips").make(
        arguments.driving,
        arguments.reference,
        arguments.output.absolute(),
        settings,
        snapshot=hub.local_snapshot(env),
        models_root=env.models_root,
        log=line.log,
        progress=show,
    )
    return result.model_dump_json(indent=2)


def _family(given: dict[str, Any], env: Environment) -> Family:
    """The family that the flags or variables name; for "auto", that of the configured weights, if it fits the mode."""
    read = read_with_variables(PreprocessSettings, given, flag)
    if read.model != "auto":
        return read.family
    named = read_with_variables(GenerateSettings, {}).model
    if named != "auto":
        return family_of(named)
    return FIRST if read.mode == "replace" else configured(env.checkpoint_dir, env.model_id, env.download_folder)


@reports_errors(as_json=failed)
def preview(argv: Sequence[str]) -> None:
    """`wan-animate preview`; prints the path of the video."""
    parser = Parser(
        "wan-animate preview",
        description="Write a video that shows clips side by side, for checking: source, skeleton, face and mask.",
    )
    parser.add_argument("clips", type=Path, metavar="DIR", help="a folder of clips, for instance data/clips/my-job")
    parser.add_argument("--driving", type=Path, metavar="VIDEO", help="the driving video, to show it beside them")
    parser.add_argument("--output", type=Path, metavar="FILE.mp4", help="the video (default: DIR/preview.mp4)")
    arguments = parser.parse_args(argv)

    from wan_orchestration.preprocess.side_by_side import write_side_by_side  # noqa: PLC0415 (OpenCV)

    output = arguments.output or arguments.clips / "preview.mp4"
    with redirect_stdout(sys.stderr):
        path = write_side_by_side(arguments.clips, output, arguments.driving)
    print(path)
