"""Seconds of one denoising forward on 1, 2, 4, ... ranks, and the bytes that each rank sends.

    uv run python benchmarks/parallel.py [--degrees 1 2 4] [--size 1280x720] [--clip-len 77] [--checkpoint-dir DIR]

Each degree is a separate torchrun launch. Bytes are counted at the collectives and compared with the formula below.
Without --checkpoint-dir a small random snapshot is used. With it, or on a CPU, only the byte counts are meaningful.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SELF = Path(__file__).resolve()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--degrees", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--size", default="80x80", help="WIDTHxHEIGHT, multiples of 16")
    parser.add_argument("--clip-len", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="forwards to time, after one that is not timed")
    parser.add_argument("--fsdp", action="store_true", help="shard the weights; their traffic is not counted")
    parser.add_argument("--checkpoint-dir", type=Path)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()

    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        snapshot = arguments.checkpoint_dir or random_snapshot(Path(scratch))
        print(f"{'ranks':>5} {'tokens/rank':>11} {'s/step':>8} {'MB sent/rank':>12} {'by formula':>10}")
        for degree in arguments.degrees:
            row = launch(degree, snapshot, arguments, Path(scratch) / f"{degree}.json")
            rows.append(row)
            print(
                f"{degree:>5} {row['tokens_per_rank']:>11} {row['seconds_per_step']:>8.3f} "
                f"{row['bytes_per_step'] / 1e6:>12.3f} {row['formula_bytes'] / 1e6:>10.3f}",
                flush=True,
            )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2))
    if any(row["bytes_per_step"] != row["formula_bytes"] for row in rows):
        sys.exit("the counted bytes differ from the formula")


def random_snapshot(folder: Path) -> Path:
    target = folder / "snapshot"
    command = [sys.executable, str(SELF.with_name("random_snapshot.py")), str(target), "--layers=5"]
    subprocess.run(command, check=True)
    return target


def launch(degree: int, snapshot: Path, arguments: argparse.Namespace, output: Path) -> dict:
    job = {
        "snapshot": str(snapshot),
        "size": list(map(int, arguments.size.split("x"))),
        "clip_len": arguments.clip_len,
        "steps": arguments.steps,
        "fsdp": arguments.fsdp,
        "output": str(output),
    }
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={degree}"]
    environment = {**os.environ, "PYTHONPATH": str(SELF.parents[1])}
    done = subprocess.run(
        [*command, str(SELF), "--rank", json.dumps(job)], env=environment, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(output.read_text())


def measure(job: dict) -> None:
    """Runs on each rank."""
    import torch

    from wan_orchestration.engine.device import pick_device
    from wan_orchestration.engine.models import Models
    from wan_orchestration.engine.parallel.ranks import connect
    from wan_orchestration.families.animate.transformer import FaceBranch
    from wan_orchestration.settings.environment import World
    from wan_orchestration.settings.generate import GenerateSettings
    from wan_orchestration.weights.snapshot import open_snapshot

    with connect(World()) as ranks, torch.no_grad():
        device, dtype = pick_device(GenerateSettings(), ranks)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        models = Models(open_snapshot(Path(job["snapshot"])), device, dtype, ranks, job["fsdp"] and ranks.size > 1)
        transformer = models.transformer()
        mesh = ranks.mesh(device)
        transformer.prepare("native", mesh and mesh.get_group("sequence"))
        config = transformer.config

        width, height = (side // 8 for side in job["size"])
        slots = (job["clip_len"] - 1) // 4 + 2
        heads, dim = config["num_attention_heads"], config["num_attention_heads"] * config["attention_head_dim"]
        random = torch.Generator().manual_seed(0)

        def noise(*shape):
            return torch.randn(shape, generator=random).to(device, dtype)

        latents, y = noise(1, 16, slots, height, width), noise(1, 20, slots, height, width)
        pose = transformer.embed_pose(noise(1, 16, slots - 1, height, width))
        features = config["face_encoder_num_heads"] + 1
        branch = FaceBranch(context=noise(1, 257 + 512, dim), motion=noise(1, slots, features, dim))
        timestep = torch.tensor([500], device=device)

        def step():
            transformer.denoise(latents, timestep, y, pose, branch)
            if device.type == "cuda":
                torch.cuda.synchronize()

        sent = count_bytes(ranks.size)
        step()
        bytes_per_step = sum(sent)
        started = time.perf_counter()
        for _ in range(job["steps"]):
            step()
        seconds = (time.perf_counter() - started) / job["steps"]
        if ranks.leads:
            local = -(-slots * height * width // 4 // ranks.size)
            row = {
                "ranks": ranks.size,
                "tokens_per_rank": local,
                "seconds_per_step": seconds,
                "bytes_per_step": bytes_per_step,
                "formula_bytes": formula(ranks.size, local, heads, dim, config["num_layers"], dtype.itemsize),
                "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
                "dtype": str(dtype),
            }
            Path(job["output"]).write_text(json.dumps(row))


def count_bytes(ranks: int) -> list[int]:
    """A list to which each collective appends the bytes that this rank sends to others."""
    import torch.distributed as dist

    sent, all_to_all, all_gather = [], dist.all_to_all_single, dist.all_gather_into_tensor

    def counting_all_to_all(received, x, **options):
        sent.append(x.nbytes * (ranks - 1) // ranks)
        return all_to_all(received, x, **options)

    def counting_all_gather(whole, x, **options):
        sent.append(x.nbytes * (ranks - 1))
        return all_gather(whole, x, **options)

    dist.all_to_all_single, dist.all_gather_into_tensor = counting_all_to_all, counting_all_gather
    return sent


def formula(ranks: int, local: int, heads: int, dim: int, layers: int, itemsize: int) -> int:
    """Bytes that a rank sends in a forward.

    Each layer exchanges query, key, value and output of the rank's tokens, with the heads padded to a multiple of the
    ranks. A rank keeps its own part: 4 * local * dim' * (n - 1) / n elements. At the end it sends the 64 output values
    of its tokens to each of the others.
    """
    padded = (heads + -heads % ranks) * (dim // heads)
    return (layers * 4 * local * padded * (ranks - 1) // ranks + local * 64 * (ranks - 1)) * itemsize


if __name__ == "__main__":
    if sys.argv[1:2] == ["--rank"]:
        measure(json.loads(sys.argv[2]))
    else:
        main()
