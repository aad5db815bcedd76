"""Runs one part: `python -m gpu_parts.process NAME MODULE:FUNCTION WORK`."""

import sys
from importlib import import_module

from gpu_parts.record import Record, Skipped, Work, append


def main(name: str, where: str, text: str) -> None:
    work = Work.loads(text)
    module, _, function = where.partition(":")
    try:
        getattr(import_module(module), function)(work, Record(name, work.out))
    except Skipped as reason:
        append(work.out, {"part": name, "skipped": str(reason)})


if __name__ == "__main__":
    main(*sys.argv[1:])
