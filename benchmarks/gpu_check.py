"""Measures this engine on one GPU in about ten minutes: correctness, speed and memory.

    python benchmarks/gpu_check.py --deadline 600 --out DIR [--price DOLLARS_AN_HOUR] [--parts NAME ...]
    python benchmarks/gpu_check.py --deadline 300 --out DIR --device cpu --tiny    # a rehearsal without a GPU

Each part runs in its own process, adds its figures to DIR/results.jsonl at once, and is killed when its time is over.
Parts that do not fit into the deadline are skipped, and the table says so. DIR/table.md has the figures as tables,
DIR/check.log has the output of the parts. The exit code is 1 only if a correctness part failed. A part that runs again
replaces its rows in results.jsonl.

No weights are needed: random ones of the 14B model's sizes are made on the GPU. Correctness is measured against
recorded outputs of the published implementation, if they are there (--parity).
"""

import argparse
import signal
import sys
import time
from pathlib import Path

from gpu_parts.driver import Part, run
from gpu_parts.record import Work, read
from gpu_parts.report import table

PARTS = (
    Part("machine", 15, "gpu_parts.machine:machine"),
    Part("worker", 40, "gpu_parts.correctness:worker", correctness=True, beside=True),
    Part("parity", 40, "gpu_parts.correctness:parity", correctness=True),
    Part("agreement", 55, "gpu_parts.correctness:agreement", correctness=True),
    Part("peaks", 30, "gpu_parts.machine:peaks"),
    Part("steps_480p", 75, "gpu_parts.steps:steps_480p", cache="480p"),
    Part("steps_720p", 110, "gpu_parts.steps:steps_720p"),
    Part("vae", 45, "gpu_parts.beside:vae"),
    Part("encoders", 20, "gpu_parts.beside:encoders"),
    Part("measuring", 45, "gpu_parts.measuring:measuring"),
    # Uses the compiled blocks of steps_480p.
    Part("job_480p", 85, "gpu_parts.job:job_480p", cache="480p"),
    Part("cap_24gb", 150, "gpu_parts.memory:cap_24gb"),
    Part("memory_720p", 55, "gpu_parts.memory:memory_720p"),
    Part("fp8_480p", 60, "gpu_parts.steps:fp8_480p"),
    Part("animate_2_640x800", 150, "gpu_parts.animate_2:animate_2_640x800"),
    Part("animate_2_720x1280", 130, "gpu_parts.animate_2:animate_2_720x1280"),
)
PARITY = (Path(__file__).parents[2] / "shared" / "parity", Path(__file__).parents[1] / "parity")


def main() -> int:
    arguments = parse()
    deadline = time.monotonic() + arguments.deadline
    # Write the table also if this process is terminated.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    arguments.out.mkdir(parents=True, exist_ok=True)
    parity = arguments.parity or next((folder for folder in PARITY if folder.is_dir()), None)
    out = arguments.out.absolute()
    work = Work(out, out, arguments.device or found_device(), arguments.tiny, parity and parity.absolute())
    parts = [part for part in PARTS if not arguments.parts or part.name in arguments.parts]

    def show() -> None:
        text = table(read(out), [part.name for part in PARTS], arguments.price, arguments.tiny)
        (out / "table.md").write_text(text)

    try:
        good = run(parts, work, deadline, show)
    finally:
        show()
    print((out / "table.md").read_text())
    return 0 if good else 1


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--deadline", type=float, default=600, metavar="SECONDS", help="time for all parts (default: %(default)s)")
    add("--out", type=Path, required=True, metavar="DIR", help="folder of the results")
    add("--price", type=float, metavar="DOLLARS", help="price of an hour on this machine; shows what a segment costs")
    add("--device", choices=["cuda", "cpu"], help="default: CUDA where there is a device")
    add("--tiny", action="store_true", help="small models and frames, to try out the check itself")
    add("--parts", nargs="+", choices=[part.name for part in PARTS], metavar="NAME", help="only these")
    add("--parity", type=Path, metavar="DIR", help="the recorded outputs (default: ../shared/parity or parity/)")
    arguments = parser.parse_args()
    if arguments.device == "cpu" and not arguments.tiny:
        parser.error("--device cpu needs --tiny: the 14B model's sizes are too much for a CPU")
    return arguments


def found_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


if __name__ == "__main__":
    sys.exit(main())
