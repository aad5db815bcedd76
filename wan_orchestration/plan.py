"""`wan-animate plan`: how the models fit this machine, or one that is described."""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil
import torch
from accelerate import init_empty_weights

from wan_orchestration.animate.clips import device_memory
from wan_orchestration.animate.cost import clip_seconds, measured_tflops
from wan_orchestration.animate.models import sizes
from wan_orchestration.animate.placement import ClipShape, Placement, Sizes, choose, placements
from wan_orchestration.animate.transformer import AnimateTransformer
from wan_orchestration.errors import BadInput
from wan_orchestration.flags import Parser
from wan_orchestration.snapshot import open_snapshot

GB = 10**9
# (GPUs, GB each) of the cards that the 14B weights are commonly run on, and dense bfloat16 TFLOP/s of such cards.
CARDS = ((1, 12, 60), (1, 16, 90), (2, 20, 100), (1, 24, 165), (1, 48, 180), (1, 80, 989))
ASSUMED_TFLOPS = 100.0
TEXT_PARAMETERS, VAE_PARAMETERS, VAE_WIDTH = 5_680_910_336, 126_892_531, 96


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    try:
        arguments = parse(argv)
        width, height = size(arguments.resolution)
        clip = ClipShape(height, width, arguments.clip_len, guided=arguments.guidance)
        models = snapshot_sizes(arguments.checkpoint_dir)
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    ram = int(arguments.ram * GB) if arguments.ram else psutil.virtual_memory().total
    described = arguments.vram is not None
    if not described and not torch.cuda.is_available():
        print(f"No CUDA device here. Clips of {arguments.resolution}x{arguments.clip_len} on common cards:\n")
        print(f"{'GPUs':>9} {'placement':>16} {'GB each':>8} {'host GB':>8} {'s/clip':>7}")
        for count, gigabytes, tflops in CARDS:
            print(card_line(models, clip, arguments.steps, count, gigabytes, tflops))
    else:
        device = torch.device("cuda", 0)
        vram = int(arguments.vram * GB) if described else device_memory(device)
        count = arguments.gpus or (1 if described else torch.cuda.device_count())
        tflops = arguments.tflops or (ASSUMED_TFLOPS if described else measured_tflops(device, torch.bfloat16))
        print(
            f"Clips of {arguments.resolution}x{arguments.clip_len} on {count} GPU(s) of {vram / GB:.0f} GB and "
            f"{tflops:.0f} TFLOP/s, {ram / GB:.0f} GB of host memory:\n"
        )
        print("\n".join(ways_lines(models, clip, arguments.steps, count, vram, ram, tflops)))
    print(
        f"\nbfloat16, {arguments.steps} steps. Memory is estimated from shapes, within about 10 %; seconds are a rough "
        "guess\nfrom the cards' peak. sharded: WAN_ENABLE_FSDP=1. placement: auto makes the same choice at run time."
    )
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The flags. BadInput: an unknown one, or a value of the wrong type."""
    parser = Parser("wan-animate plan", description="Show how the models fit this machine, or one that is described.")
    add = parser.add_argument
    add("--resolution", default="1280x720", metavar="WxH", help="of the video (default: %(default)s)")
    add("--clip-len", type=int, default=77, help="frames generated at once (default: %(default)s)")
    add("--steps", type=int, default=20, help="denoising steps (default: %(default)s)")
    add("--guidance", action="store_true", help="guide_scale above 1: two forwards a step")
    add("--gpus", type=int, metavar="N", help="GPUs for one video (default: those found)")
    add("--vram", type=float, metavar="GB", help="memory of each GPU (default: as found)")
    add("--ram", type=float, metavar="GB", help="host memory (default: as found)")
    add("--tflops", type=float, help="dense bfloat16 TFLOP/s of each GPU (default: measured; described cards: 100)")
    add("--checkpoint-dir", type=Path, metavar="DIR", help="a snapshot (default: the sizes of the 14B one)")
    return parser.parse_args(argv)


def size(resolution: str) -> tuple[int, int]:
    """Width and height of WxH. BadInput: not that, or not multiples of 16."""
    match = re.fullmatch(r"(\d+)x(\d+)", resolution)
    if not match or any(int(side) % 16 or int(side) == 0 for side in match.groups()):
        raise BadInput(f"--resolution {resolution}: expected WxH, both multiples of 16, for instance 1280x720")
    return int(match[1]), int(match[2])


def snapshot_sizes(folder: Path | None) -> Sizes:
    """Sizes in bfloat16 of a snapshot's models, or of the 14B one's. BadInput: it cannot be used."""
    if folder:
        return sizes(open_snapshot(folder), torch.bfloat16)
    with init_empty_weights():
        transformer = AnimateTransformer(added_kv_proj_dim=5120)
    return Sizes.of(transformer, TEXT_PARAMETERS * 2, VAE_PARAMETERS * 4, VAE_WIDTH, torch.bfloat16.itemsize)


def all_ways(models: Sizes, clip: ClipShape, gpus: int) -> list[tuple[str, bool, Placement]]:
    """Name, whether weights are sharded, and needs of each way; sharding, where there are several GPUs, comes first."""
    ways = [(way.name, False, way) for way in placements(models, clip, gpus)]
    if gpus > 1:
        (sharded,) = placements(models, clip, gpus, fsdp=True)
        ways.insert(1, ("sharded", True, sharded))
    return ways


def ways_lines(models: Sizes, clip: ClipShape, steps: int, gpus: int, vram: int, ram: int, tflops: float) -> list[str]:
    """A table of the ways to place the models."""
    lines = [f"  {'placement':>10} {'GB each':>8} {'host GB':>8} {'s/clip':>7}"]
    chosen = choose(placements(models, clip, gpus), vram, ram)[0].name
    for name, _, way in all_ways(models, clip, gpus):
        fits = "fits" if way.fits(vram, ram) else "does not fit"
        seconds = clip_seconds(models, clip, steps, way.name, tflops, gpus)
        mark = "*" if name == chosen else " "
        lines.append(f"{mark} {name:>10} {way.vram / GB:8.1f} {way.ram / GB:8.0f} {seconds:7.0f}  {fits}")
    return lines


def card_line(models: Sizes, clip: ClipShape, steps: int, gpus: int, gigabytes: int, tflops: float) -> str:
    """The fastest way that fits so many cards, given host memory enough."""
    ways = all_ways(models, clip, gpus)
    name, _, way = next((one for one in ways if one[2].vram <= gigabytes * GB), ways[-1])
    seconds = clip_seconds(models, clip, steps, way.name, tflops, gpus)
    note = "" if way.vram <= gigabytes * GB else "  too large: use a smaller --resolution or --clip-len"
    return f"{gpus:>3} x {gigabytes:2d} GB {name:>16} {way.vram / GB:8.1f} {way.ram / GB:8.0f} {seconds:7.0f}{note}"
