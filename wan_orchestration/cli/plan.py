"""`wan-animate plan`: shows how the models fit this machine, or one that the flags describe."""

import argparse
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
import torch

from wan_orchestration.cli.flags import Parser, flag
from wan_orchestration.cli.terminal import print_table, reports_errors
from wan_orchestration.engine.memory.capacity import device_memory
from wan_orchestration.engine.memory.placement import Placement, SegmentShape, all_placements, choose
from wan_orchestration.engine.memory.sizes import Sizes, sizes
from wan_orchestration.engine.speed import measured_tflops, segment_seconds
from wan_orchestration.errors import BadInput, validate
from wan_orchestration.families.choose import FAMILIES, FIRST
from wan_orchestration.settings.generate import GenerateSettings
from wan_orchestration.weights.snapshot import open_snapshot

DEFAULT_SETTINGS = GenerateSettings(model="animate")
GB = 10**9
CARDS = ((1, 12, 60), (1, 16, 90), (2, 20, 100), (1, 24, 165), (1, 48, 180), (1, 80, 989))
"""Cards on which the 14B weights are commonly run: (GPUs, GB of each, dense bfloat16 TFLOP/s of each)."""
ASSUMED_TFLOPS = 100.0
"""Dense bfloat16 TFLOP/s of a GPU that the flags describe."""
TEXT_PARAMETERS, VAE_PARAMETERS, VAE_WIDTH = 5_680_910_336, 126_892_531, 96
"""Of the 14B snapshot."""
NUMBERS = ("GB each", "host GB", "s/segment")


@reports_errors()
def main(argv: Sequence[str]) -> None:
    """`wan-animate plan`."""
    arguments = parse(argv)
    width, height = size(arguments.resolution)
    settings = generate_settings(arguments)
    driving = (height, width) if settings.family.reads_driving else None
    segment = SegmentShape(height, width, settings.clip_len, settings.guided, driving)
    vae_dtype = getattr(torch, arguments.vae_dtype)
    exact, quantized = (snapshot_sizes(arguments.checkpoint_dir, eight, vae_dtype, settings) for eight in (False, True))
    if arguments.json:
        print_json(arguments, settings, segment, exact if arguments.quantization == "off" else quantized)
        return
    if arguments.vram is None and not torch.cuda.is_available():
        print_cards(arguments, settings, segment, exact, quantized)
    else:
        print_machine(arguments, settings, segment, exact if arguments.quantization == "off" else quantized)
    print(
        f"\nbfloat16, VAE in {arguments.vae_dtype}, {settings.sampling_steps} denoising steps. Memory is estimated "
        "from shapes to about 10 %;\nseconds are a rough guess from the peak speed. sharded: WAN_ENABLE_FSDP=1. "
        "placement: auto makes the same\nchoice at run time; quantization and vae_dtype are settings."
    )


def print_cards(
    arguments: argparse.Namespace, settings: GenerateSettings, segment: SegmentShape, exact: Sizes, quantized: Sizes
) -> None:
    """A table of common cards."""
    print(f"No CUDA device here. Segments of {arguments.resolution}x{segment.frames} on common cards:\n")
    rows = [row for card in CARDS for row in card_rows(exact, quantized, segment, settings, *card)]
    print_table(("GPUs", "placement", "GB each", "host GB", "s/segment", "quantization"), rows, NUMBERS)


@dataclass(frozen=True)
class Machine:
    """This machine, or the one that the flags describe."""

    gpus: int
    vram: int
    """Bytes of each GPU."""
    ram: int
    """Bytes of the host."""
    tflops: float
    """Dense bfloat16 TFLOP/s of each GPU."""

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> "Machine":
        device, described = torch.device("cuda", 0), arguments.vram is not None
        return cls(
            gpus=arguments.gpus or (1 if described else torch.cuda.device_count()),
            vram=int(arguments.vram * GB) if described else device_memory(device),
            ram=int(arguments.ram * GB) if arguments.ram else psutil.virtual_memory().total,
            tflops=arguments.tflops or (ASSUMED_TFLOPS if described else measured_tflops(device, torch.bfloat16)),
        )


@dataclass(frozen=True)
class Way:
    """A way to place the models on a machine."""

    name: str
    """Of the placement, or `sharded`."""
    vram: int
    """Bytes on each GPU."""
    ram: int
    """Bytes of the host."""
    fits: bool
    chosen: bool
    """Whether `placement: auto` chooses it."""
    seconds: float
    """Expected for a segment."""


def print_json(arguments: argparse.Namespace, settings: GenerateSettings, segment: SegmentShape, models: Sizes) -> None:
    """The machine and the ways to place the models on it, as JSON. BadInput: there is no GPU, and none is described."""
    if arguments.vram is None and not torch.cuda.is_available():
        raise BadInput("--json needs a CUDA device, or --vram to describe one")
    machine = Machine.of(arguments)
    ways = list(machine_ways(models, segment, settings, machine))
    print(json.dumps({**asdict(machine), "ways": [asdict(way) for way in ways]}))


def print_machine(
    arguments: argparse.Namespace, settings: GenerateSettings, segment: SegmentShape, models: Sizes
) -> None:
    """A table of the ways to place the models on this machine, or on the one that the flags describe."""
    machine = Machine.of(arguments)
    memory = f"{machine.vram / GB:.0f} GB and {machine.tflops:.0f} TFLOP/s, {machine.ram / GB:.0f} GB of host memory"
    print(f"Segments of {arguments.resolution}x{segment.frames} on {machine.gpus} GPU(s) of {memory}:\n")
    rows = [
        (
            "*" if way.chosen else "",
            way.name,
            *_gigabytes(way),
            f"{way.seconds:.0f}",
            "fits" if way.fits else "does not fit",
        )
        for way in machine_ways(models, segment, settings, machine)
    ]
    print_table(("", "placement", "GB each", "host GB", "s/segment", ""), rows, NUMBERS)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The flags. BadInput: an unknown one, or a value of the wrong type."""
    parser = Parser("wan-animate plan", description="Show how the models fit this machine, or one that you describe.")
    add = parser.add_argument
    add("--resolution", default="1280x720", metavar="WxH", help="size of the video (default: %(default)s)")
    add("--model", choices=tuple(FAMILIES), default=FIRST.name, help="(default: %(default)s)")
    add("--variant", choices=("distilled", "base"), help="of animate-2 (default: distilled)")
    add("--clip-len", type=int, help="frames of a segment (default: the model's)")
    add("--steps", type=int, help="denoising steps (default: the model's)")
    add("--guidance", action="store_true", help="guide_scale above 1: two forward passes a denoising step")
    add("--quantization", choices=("off", "fp8"), default="off", help="8-bit weights (default: %(default)s)")
    add("--vae-dtype", choices=("float32", "bfloat16"), default="float32", help="(default: %(default)s)")
    add("--driving-cache-fp8", action="store_true", help="animate-2: 8 bits for what it keeps of the driving video")
    add("--gpus", type=int, metavar="N", help="GPUs for one video (default: all of this machine)")
    add("--vram", type=float, metavar="GB", help="memory of each GPU (default: that of this machine)")
    add("--ram", type=float, metavar="GB", help="host memory (default: that of this machine)")
    add("--tflops", type=float, help="dense bfloat16 TFLOP/s of each GPU (default: measured; 100 with --vram)")
    add("--checkpoint-dir", type=Path, metavar="DIR", help="a snapshot (default: the sizes of the 14B snapshot)")
    add("--json", action="store_true", help="print JSON: bytes, and seconds of a segment")
    return parser.parse_args(argv)


def generate_settings(arguments: argparse.Namespace) -> GenerateSettings:
    """The settings that the flags describe. BadInput."""
    given = {
        "model": arguments.model,
        "variant": arguments.variant,
        "clip_len": arguments.clip_len,
        "sampling_steps": arguments.steps,
        "guide_scale": 2.0 if arguments.guidance else None,
        "driving_cache_fp8": arguments.driving_cache_fp8 or None,
    }
    return validate(GenerateSettings, {name: value for name, value in given.items() if value is not None}, flag)


def size(resolution: str) -> tuple[int, int]:
    """Width and height of WxH. BadInput: another form, or not multiples of 16."""
    match = re.fullmatch(r"(\d+)x(\d+)", resolution)
    if not match or any(int(side) % 16 or int(side) == 0 for side in match.groups()):
        raise BadInput(f"--resolution {resolution}: expected WxH, both multiples of 16, for instance 1280x720")
    return int(match[1]), int(match[2])


def snapshot_sizes(
    folder: Path | None,
    quantized: bool = False,
    vae_dtype: torch.dtype = torch.float32,
    settings: GenerateSettings = DEFAULT_SETTINGS,
) -> Sizes:
    """Sizes in bfloat16 of a snapshot's models; of the 14B snapshot if no folder is given. BadInput."""
    if folder:
        return sizes(open_snapshot(folder, variant=settings.variant), torch.bfloat16, quantized, vae_dtype)
    transformer = settings.family.part("checkpoint").published()
    return Sizes.of(
        transformer,
        text_encoder=TEXT_PARAMETERS * 2,
        vae=VAE_PARAMETERS * vae_dtype.itemsize,
        vae_width=VAE_WIDTH,
        itemsize=torch.bfloat16.itemsize,
        vae_itemsize=vae_dtype.itemsize,
        quantized=quantized,
    )


def all_ways(
    models: Sizes, segment: SegmentShape, settings: GenerateSettings, gpus: int
) -> list[tuple[str, bool, Placement]]:
    """Each way's name, whether it shards weights, and its memory; the fastest first. Sharding needs several GPUs."""
    ways = [(_name(way.name, way), False, way) for way in all_placements(models, segment, settings, gpus)]
    if gpus > 1:
        sharded = all_placements(models, segment, settings, gpus, fsdp=True)
        ways[len(sharded) : len(sharded)] = [(_name("sharded", way), True, way) for way in sharded]
    return ways


def _name(name: str, way: Placement) -> str:
    return f"{name}, cache: {way.cache}" if way.cache else name


def machine_ways(models: Sizes, segment: SegmentShape, settings: GenerateSettings, machine: Machine) -> Iterator[Way]:
    """The ways to place the models on a machine."""
    chosen = choose(all_placements(models, segment, settings, machine.gpus), machine.vram, machine.ram)[0]
    for name, _, placement in all_ways(models, segment, settings, machine.gpus):
        seconds = segment_seconds(
            models, segment, settings.sampling_steps, placement.name, machine.tflops, machine.gpus
        )
        fits = placement.fits(machine.vram, machine.ram)
        yield Way(name, placement.vram, placement.ram, fits, placement == chosen, seconds)


def card_rows(
    exact: Sizes,
    quantized: Sizes,
    segment: SegmentShape,
    settings: GenerateSettings,
    gpus: int,
    gigabytes: int,
    tflops: float,
) -> Iterator[tuple[str, ...]]:
    """Rows for the fastest exact way that fits these cards, and for a faster one with 8-bit weights if there is one.

    Both assume enough host memory.
    """
    cards = f"{gpus} x {gigabytes} GB"
    found: list[str] = []
    for quantization, models in (("off", exact), ("fp8", quantized)):
        fitting = [way for way in all_ways(models, segment, settings, gpus) if way[2].vram <= gigabytes * GB]
        # Sharding does not work with 8-bit weights.
        fastest = next((way for way in fitting if not (way[1] and quantization == "fp8")), None)
        if fastest and fastest[0] not in found:
            name, _, way = fastest
            seconds = segment_seconds(models, segment, settings.sampling_steps, way.name, tflops, gpus)
            yield cards, name, *_gigabytes(way), f"{seconds:.0f}", quantization
            found.append(name)
    if not found:
        yield cards, "too small", "", "", "", "use a smaller --resolution or --clip-len, or --vae-dtype bfloat16"


def _gigabytes(way: Placement | Way) -> tuple[str, str]:
    """GB of each GPU and of the host."""
    return f"{way.vram / GB:.1f}", f"{way.ram / GB:.0f}"
