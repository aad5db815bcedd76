"""`wan-animate plan`: how the models fit this machine, or one that is described."""

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import torch
from accelerate import init_empty_weights

from wan_orchestration.animate.memory.capacity import device_memory
from wan_orchestration.animate.memory.placement import Placement, SegmentShape, choose, placements
from wan_orchestration.animate.memory.sizes import Sizes, sizes
from wan_orchestration.animate.speed import measured_tflops, segment_seconds
from wan_orchestration.animate.transformer.model import AnimateTransformer
from wan_orchestration.cli.flags import Parser
from wan_orchestration.errors import BadInput
from wan_orchestration.weights.snapshot import open_snapshot

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
        clip = SegmentShape(height, width, arguments.clip_len, guided=arguments.guidance)
        vae_dtype = getattr(torch, arguments.vae_dtype)
        exact, quantized = (snapshot_sizes(arguments.checkpoint_dir, eight, vae_dtype) for eight in (False, True))
        models = exact if arguments.quantization == "off" else quantized
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    ram = int(arguments.ram * GB) if arguments.ram else psutil.virtual_memory().total
    described = arguments.vram is not None
    if not described and not torch.cuda.is_available():
        print(f"No CUDA device here. Clips of {arguments.resolution}x{arguments.clip_len} on common cards:\n")
        print(f"{'GPUs':>10} {'placement':>10} {'GB each':>8} {'host GB':>8} {'s/clip':>7}  quantization")
        for card in CARDS:
            print("\n".join(card_lines(exact, quantized, clip, arguments.steps, *card)))
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
        f"\nbfloat16, VAE in {arguments.vae_dtype}, {arguments.steps} steps. Memory is estimated from shapes, within "
        "about 10 %; seconds\nare a rough guess from the cards' peak. sharded: WAN_ENABLE_FSDP=1. placement: auto "
        "makes the same choice\nat run time; quantization and vae_dtype are settings."
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
    add("--quantization", choices=("off", "fp8"), default="off", help="8-bit weights (default: %(default)s)")
    add("--vae-dtype", choices=("float32", "bfloat16"), default="float32", help="(default: %(default)s)")
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


def snapshot_sizes(folder: Path | None, quantized: bool = False, vae_dtype: torch.dtype = torch.float32) -> Sizes:
    """Sizes in bfloat16 of a snapshot's models, or of the 14B one's. BadInput: it cannot be used."""
    if folder:
        return sizes(open_snapshot(folder), torch.bfloat16, quantized, vae_dtype)
    with init_empty_weights():
        transformer = AnimateTransformer(added_kv_proj_dim=5120)
    return Sizes.of(
        transformer,
        text_encoder=TEXT_PARAMETERS * 2,
        vae=VAE_PARAMETERS * vae_dtype.itemsize,
        vae_width=VAE_WIDTH,
        itemsize=torch.bfloat16.itemsize,
        vae_itemsize=vae_dtype.itemsize,
        quantized=quantized,
    )


def all_ways(models: Sizes, clip: SegmentShape, gpus: int) -> list[tuple[str, bool, Placement]]:
    """Name, whether weights are sharded, and needs of each way; sharding, where there are several GPUs, comes first."""
    ways = [(way.name, False, way) for way in placements(models, clip, gpus)]
    if gpus > 1:
        (sharded,) = placements(models, clip, gpus, fsdp=True)
        ways.insert(1, ("sharded", True, sharded))
    return ways


def ways_lines(
    models: Sizes, clip: SegmentShape, steps: int, gpus: int, vram: int, ram: int, tflops: float
) -> list[str]:
    """A table of the ways to place the models."""
    lines = [f"  {'placement':>10} {'GB each':>8} {'host GB':>8} {'s/clip':>7}"]
    chosen = choose(placements(models, clip, gpus), vram, ram)[0].name
    for name, _, way in all_ways(models, clip, gpus):
        fits = "fits" if way.fits(vram, ram) else "does not fit"
        seconds = segment_seconds(models, clip, steps, way.name, tflops, gpus)
        mark = "*" if name == chosen else " "
        lines.append(f"{mark} {name:>10} {way.vram / GB:8.1f} {way.ram / GB:8.0f} {seconds:7.0f}  {fits}")
    return lines


def card_lines(
    exact: Sizes, quantized: Sizes, clip: SegmentShape, steps: int, gpus: int, gigabytes: int, tflops: float
) -> Iterator[str]:
    """The fastest exact way that fits so many cards, given host memory enough; and a faster one with 8-bit weights."""
    found: list[str] = []
    for name, models in (("off", exact), ("fp8", quantized)):
        fitting = [one for one in all_ways(models, clip, gpus) if one[2].vram <= gigabytes * GB]
        # Sharding and 8-bit weights exclude each other.
        way = next((one for one in fitting if not (one[1] and name == "fp8")), None)
        if way and way[0] not in found:
            seconds = segment_seconds(models, clip, steps, way[2].name, tflops, gpus)
            memory = f"{way[2].vram / GB:8.1f} {way[2].ram / GB:8.0f}"
            yield f"{gpus:>3} x {gigabytes:2d} GB {way[0]:>10} {memory} {seconds:7.0f}  {name}"
            found.append(way[0])
    if not found:
        smaller = "use a smaller --resolution or --clip-len, or --vae-dtype bfloat16"
        yield f"{gpus:>3} x {gigabytes:2d} GB  too small: {smaller}"
