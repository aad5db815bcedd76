"""Seconds until work begins: the imports of commands, and the loading of each model.

    uv run python benchmarks/startup.py [--checkpoint-dir DIR] [--cold] [--json FILE]

Each figure is the median of three processes. With --cold the snapshot's files are dropped from the page cache before
each process, which needs no special rights. Without --checkpoint-dir a small random snapshot is used.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from long_video import random_snapshot

COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "infer --help": ["-m", "wan_orchestration.cli.main", "infer", "--help"],
    "plan --help": ["-m", "wan_orchestration.cli.main", "plan", "--help"],
    "the code location (dagster)": ["-c", "import wan_orchestration.definitions"],
    "the engine (torch, diffusers, transformers)": ["-c", "import wan_orchestration.generate.runner"],
}
MODELS = ("tokenizer", "text_encoder", "image_encoder", "vae", "transformer")
LOAD = """
import sys, time
from pathlib import Path
import torch
from wan_orchestration.engine.models import Models
from wan_orchestration.weights.snapshot import open_snapshot
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
models = Models(open_snapshot(Path(sys.argv[1])), device, dtype)
if device.type == "cuda":
    torch.zeros(1, device=device)
started = time.perf_counter()
getattr(models, sys.argv[2])()
if device.type == "cuda":
    torch.cuda.synchronize()
print(time.perf_counter() - started)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint-dir", type=Path)
    parser.add_argument("--cold", action="store_true", help="read weights from disk, not from the page cache")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()

    rows = {}
    with tempfile.TemporaryDirectory() as scratch:
        snapshot = arguments.checkpoint_dir or random_snapshot(Path(scratch))
        for name, command in COMMANDS.items():
            rows[name] = statistics.median(wall(command) for _ in range(arguments.repeat))
            print(f"{rows[name]:8.2f} s  {name}", flush=True)
        for model in MODELS:
            name = f"load {model}"
            rows[name] = statistics.median(load(snapshot, model, arguments.cold) for _ in range(arguments.repeat))
            print(f"{rows[name]:8.3f} s  {name}" + (" (cold)" if arguments.cold else ""), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2))


def wall(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - started


def load(snapshot: Path, model: str, cold: bool) -> float:
    if cold:
        for file in snapshot.rglob("*"):
            if file.is_file():
                with file.open("rb") as stream:
                    os.fsync(stream.fileno())
                    os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(snapshot), model], check=True, capture_output=True, text=True
    )
    return float(done.stdout.split()[-1])


if __name__ == "__main__":
    main()
