"""Seconds per frame and peak memory for videos of several lengths.

    uv run python benchmarks/long_video.py [--frames 77 385 1925] [--size 96x64] [--clip-len 77] [--steps 4]

Each length runs in its own process: `infer` on a job drawn for it. Peak memory is the process's largest resident set as
the system reports it. Without --checkpoint-dir a small random snapshot is used; its speed says nothing about the 14B
one.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

from wan_orchestration.video.writer import write_lossless


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, nargs="+", default=[77, 385, 1925])
    parser.add_argument("--size", default="96x64", help="WIDTHxHEIGHT, multiples of 16")
    parser.add_argument("--clip-len", type=int, default=77)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--checkpoint-dir", type=Path)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    width, height = map(int, arguments.size.split("x"))

    with tempfile.TemporaryDirectory() as scratch:
        snapshot = arguments.checkpoint_dir or random_snapshot(Path(scratch))
        rows = []
        print(f"{'frames':>7} {'segments':>8} {'seconds':>9} {'s/frame':>9} {'peak MB':>8}")
        for frames in arguments.frames:
            job = draw_job(Path(scratch) / f"job-{frames}", frames, height, width)
            row = measure(job, snapshot, arguments.clip_len, arguments.steps)
            rows.append(row)
            print(
                f"{row['frames']:>7} {row['clips']:>8} {row['seconds']:>9.1f} "
                f"{row['seconds'] / row['frames']:>9.4f} {row['peak_bytes'] / 2**20:>8.0f}",
                flush=True,
            )
    print(f"peak memory, longest video / shortest: {rows[-1]['peak_bytes'] / rows[0]['peak_bytes']:.3f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2))


def random_snapshot(folder: Path, model: str = "animate") -> Path:
    target, script = folder / "snapshot", Path(__file__).with_name("random_snapshot.py")
    subprocess.run([sys.executable, str(script), str(target), "--model", model], check=True)
    return target


def draw_job(folder: Path, frames: int, height: int, width: int) -> Path:
    """A job whose pose and face clips show a moving bar."""
    folder.mkdir()
    write_lossless(folder / "src_pose.mp4", _bars(frames, height, width), Fraction(30))
    write_lossless(folder / "src_face.mp4", _bars(frames, 512, 512), Fraction(30))
    Image.new("RGB", (width, height), (200, 180, 160)).save(folder / "src_ref.png")
    return folder


def draw_animate_2_job(folder: Path, frames: int, height: int, width: int) -> Path:
    """Clips of Wan-Animate-2 whose driving video shows a moving bar, and whose picture fills the frame."""
    folder.mkdir()
    write_lossless(folder / "src_driving.mp4", _bars(frames, height, width), Fraction(24))
    Image.new("RGB", (width, height), (200, 180, 160)).save(folder / "src_ref.png")
    canvas = {"area": height * width, "height": height, "width": width, "top": 0, "left": 0}
    canvas |= {"picture_height": height, "picture_width": width}
    (folder / "canvas.json").write_text(json.dumps(canvas))
    return folder


def _bars(frames: int, height: int, width: int) -> Iterator[np.ndarray]:
    for i in range(frames):
        frame = np.zeros((height, width, 3), np.uint8)
        frame[:, (5 * i) % width :][:, : width // 4] = (255, 128, 64)
        yield frame


def measure(job: Path, snapshot: Path, clip_len: int, steps: int) -> dict[str, float]:
    """Run `infer` once. Seconds are the job's, without loading. Peak memory is the process's."""
    command = [sys.executable, "-m", "wan_orchestration.infer", "--src-root", str(job), "--output", str(job / "out")]
    command += ["--checkpoint-dir", str(snapshot), "--clip-len", str(clip_len), "--sampling-steps", str(steps)]
    with (job / "log").open("w") as log, (job / "result").open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit((job / "log").read_text())
    result = json.loads((job / "result").read_text())
    return {
        "frames": result["frames"],
        "clips": result["clips"],
        "seconds": result["seconds"]["total"] - result["seconds"]["load"],
        "peak_bytes": usage.ru_maxrss * 1024,
    }


if __name__ == "__main__":
    main()
