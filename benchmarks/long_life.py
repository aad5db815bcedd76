"""Memory of one process that makes many short and different videos.

    uv run python benchmarks/long_life.py [--jobs 100] [--checkpoint-dir DIR] [--json FILE]

Jobs run one after another, as in a launch that stays warm, on the CPU. They differ in prompt, LoRA, size, mode,
guidance, dtype and placement; the order is random, but the same each time. Every fifth job is the same, because each
job leaves other models loaded. After it, the process's memory is read: all resident pages, and those without a file.
"""

import argparse
import json
import random
import re
import tempfile
import threading
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from long_video import draw_job
from safetensors.torch import save_file

from wan_orchestration.engine.models import Models
from wan_orchestration.engine.parallel.ranks import Ranks
from wan_orchestration.generate.runner import Runner
from wan_orchestration.generate.segments import SegmentMaker
from wan_orchestration.jobs.clips import check_clips
from wan_orchestration.protocol.messages import Task
from wan_orchestration.settings.generate import GenerateSettings
from wan_orchestration.video.writer import write_lossless
from wan_orchestration.weights.snapshot import Snapshot, open_snapshot

MINI = Path(__file__).parents[1] / "data" / "models" / "wan-animate-mini"
SAME = 5
"""Every n-th job is the same."""
SIZES = ((64, 96), (96, 64), (64, 64), (128, 96))


class Quiet:
    def log(self, message: object) -> None: ...

    progress = segment = finished = log


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=100)
    parser.add_argument("--checkpoint-dir", type=Path, default=MINI)
    parser.add_argument("--cache-root", type=Path, help="also cache tensors on disk")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    draw = random.Random(0)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        snapshot = open_snapshot(arguments.checkpoint_dir.absolute())
        jobs = [draw_pair(scratch / f"{height}x{width}", height, width) for height, width in SIZES]
        loras = [write_lora(scratch / f"{kind}.safetensors", snapshot, kind) for kind in range(2)]
        maker = SegmentMaker(Ranks(), cache_root=arguments.cache_root)
        memory: dict[int, tuple[int, int]] = {}
        for number in range(1, arguments.jobs + 1):
            # A runner for each job, because each request has its own.
            result = Runner(snapshot, Quiet(), maker).run(draw_task(draw, number, jobs, loras, scratch))
            if result.error:
                raise SystemExit(result.error)
            if number % SAME == 0:
                memory[number] = resident("VmRSS"), resident("RssAnon")
                whole, anonymous = (size / 1e6 for size in memory[number])
                print(f"after {number:>4} jobs: {whole:>7.1f} MB, without files {anonymous:>7.1f} MB", flush=True)
    first, last = min(memory), max(memory)
    growth = [after / before - 1 for before, after in zip(memory[first], memory[last], strict=True)]
    print(f"growth from {first} to {last} jobs: {growth[0]:+.1%}, without files {growth[1]:+.1%}")
    print(f"{threading.active_count()} threads")
    if arguments.json:
        arguments.json.write_text(json.dumps({"memory": memory, "growth": growth}, indent=2))


def draw_pair(folder: Path, height: int, width: int) -> Path:
    """A job folder that serves both modes."""
    draw_job(folder, 5, height, width)
    mask = np.zeros((height, width), np.uint8)
    mask[height // 4 : height // 2, width // 4 : width // 2] = 255
    write_lossless(folder / "src_bg.mp4", [np.full((height, width, 3), 90, np.uint8)] * 5, Fraction(30))
    write_lossless(folder / "src_mask.mp4", [mask] * 5, Fraction(30), "gray")
    return folder


def write_lora(file: Path, snapshot: Snapshot, kind: int) -> Path:
    """A LoRA of rank 4 for the self-attention or the feed-forward layers of all blocks."""
    part = ("attn1.to_q", "ffn.net.0.proj")[kind]
    weights = dict(Models(snapshot, torch.device("cpu"), torch.float32).transformer().named_parameters())
    tensors = {}
    for name, weight in weights.items():
        if name.endswith(f"{part}.weight"):
            module = name.removesuffix(".weight")
            tensors[f"{module}.lora_A.weight"] = torch.randn(4, weight.shape[1]) / 8
            tensors[f"{module}.lora_B.weight"] = torch.randn(weight.shape[0], 4) / 8
    save_file(tensors, file)
    return file


def draw_task(draw: random.Random, number: int, jobs: list[Path], loras: list[Path], scratch: Path) -> Task:
    """A random task, or the one that is always the same."""
    if number % SAME == 0:
        draw = random.Random(1)
    settings = GenerateSettings(
        mode=draw.choice(["animate", "replace"]),
        clip_len=5,
        sampling_steps=draw.choice([1, 2]),
        device="cpu",
        dtype=draw.choice(["float32"] * 4 + ["bfloat16"]),
        placement=draw.choice(["auto"] * 4 + ["swap", "offload"]),
        guide_scale=draw.choice([1.0, 2.0]),
        prompt=f"a dancer in street {draw.randrange(60)}",
        lora=draw.choice([[], [], [str(loras[0])], [f"{loras[1]}:0.5"], [f"{loras[0]}:0.7", str(loras[1])]]),
    )
    job = draw.choice(jobs)
    return Task(
        job_id=f"job-{number}",
        clips=check_clips(job, settings.mode, settings.refert_num),
        output=scratch / "out" / f"job-{number}",
        settings=settings,
        created_at=datetime.now(UTC),
    )


def resident(kind: str) -> int:
    """Bytes of resident memory, by a name in `/proc/self/status`."""
    found = re.search(rf"^{kind}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) * 1024


if __name__ == "__main__":
    main()
