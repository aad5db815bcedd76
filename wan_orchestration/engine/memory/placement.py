"""Where the models lie while a segment is generated, and how much memory each placement takes, estimated from shapes.

The factors were measured by running the engine on tensors without data; `tests/engine/memory` measures them again.
They hold for every width and size. `OVERHEAD`, the memory that CUDA takes for itself, is added.
"""

from dataclasses import dataclass
from typing import Literal

from wan_orchestration.engine.memory.sizes import Sizes
from wan_orchestration.engine.vae.bands import BAND, starts
from wan_orchestration.families.family import DrivingCache, Maps
from wan_orchestration.settings.generate import GenerateSettings

NOTHING = DrivingCache()

Name = Literal["resident", "swap", "offload", "tiled"]

WAYS: dict[Name, str] = {
    "resident": "all models on the device, the text encoder freed after use",
    "swap": "the transformer in host memory while the VAE works; both compute in slices",
    "offload": "the transformer in host memory, each block copied to the device just before it runs; text on the CPU",
    "tiled": "as offload, and the VAE works on overlapping bands of the picture, which are blended",
}

STREAMED: tuple[Name, ...] = ("offload", "tiled")
"""Placements whose transformer blocks stay in host memory until they run."""

VAE_MAPS, BY_FRAMES_MAPS = 12.7, 9.0
"""Feature maps of the outermost layer, (base_dim, 4, H, W), that exist at the peak of decoding, without the video
itself: with all frames of a chunk at a time, and frame by frame."""
OVERHEAD = int(1.5e9)
"""Bytes for CUDA's context and libraries, and for fragmentation."""
PROCESS = int(4e9)
"""Bytes of host memory besides weights: libraries, and the frames of one or two segments."""
CONTEXT_TOKENS = 257 + 512


def has_seams(name: Name, height: int, ranks: int) -> bool:
    """Whether a video of this height shows seams between bands with this placement. Several ranks need no bands."""
    return name == "tiled" and ranks == 1 and len(starts(height // 8)) > 1


@dataclass(frozen=True)
class SegmentShape:
    """The properties of a job that decide memory and time: size, frames of a segment, guidance."""

    height: int
    width: int
    frames: int
    guided: bool = False
    driving: tuple[int, int] | None = None
    """Height and width of driving frames that the transformer reads; None: it reads none."""

    @property
    def driving_tokens(self) -> int:
        """Tokens of the driving frames."""
        height, width = self.driving or (0, 0)
        return ((self.frames - 1) // 4 + 1) * (height // 16) * (width // 16)

    @property
    def tokens(self) -> int:
        """Tokens of one forward: patches of 16 x 16 pixels in each latent frame and in the reference slot."""
        return ((self.frames - 1) // 4 + 2) * (self.height // 16) * (self.width // 16)

    @property
    def video(self) -> int:
        """Bytes of the segment as the VAE reads or writes it, float32."""
        return 3 * self.frames * self.height * self.width * 4


@dataclass(frozen=True)
class Placement:
    """Where the models lie, with the expected peak in bytes on each device and in host memory."""

    name: Name
    vram: int = 0
    ram: int = 0
    cache: str = ""
    """Where the driving frames' keys and values lie, see `families.family.DrivingCache`."""

    def fits(self, vram: int, ram: int) -> bool:
        return self.vram <= vram and self.ram <= ram

    def __str__(self) -> str:
        memory = f"about {self.vram / 1e9:.1f} GB on the device and {self.ram / 1e9:.0f} GB of host memory"
        cache = f", driving_cache {self.cache}" if self.cache else ""
        return f"{self.name} ({WAYS[self.name]}{cache}), {memory}"


def all_placements(
    sizes: Sizes, segment: SegmentShape, settings: GenerateSettings, ranks: int = 1, fsdp: bool = False
) -> list[Placement]:
    """As `placements`, of each with each way to keep what is computed of the driving frames."""
    copies = 2 if settings.cfg_parallel and settings.guided and ranks % 2 == 0 else 1
    maps = Maps(sizes.layers, segment.driving_tokens * sizes.dim * sizes.itemsize, sizes.itemsize, sizes.head_dim)
    kept = settings.family.keep(settings, maps, ranks // copies, copies)
    takes = settings.retakes > 0  # a segment that may be made again keeps it until it is decoded
    ways = [placements(sizes, segment, ranks, fsdp, not settings.offload_model, one, takes) for one in kept]
    return [way for alike in zip(*ways, strict=True) for way in alike]


def placements(
    sizes: Sizes,
    segment: SegmentShape,
    ranks: int = 1,
    fsdp: bool = False,
    keep_text: bool = False,
    beside: DrivingCache = NOTHING,
    beside_vae: bool = False,
) -> list[Placement]:
    """The placements of models of these sizes, the fastest first, with the memory that each needs.

    `beside` is what is kept of the driving frames while denoising, with `beside_vae` also while decoding. Device memory
    is per rank, host memory is for all ranks. Ranks share tokens and the VAE's rows. With FSDP they also share weights,
    which then stay on the devices. With `keep_text` the text encoder stays loaded: on the device, or in host memory if
    blocks are streamed.
    """
    shared = ranks if fsdp else 1
    whole, text = sizes.transformer // shared, sizes.text_encoder // shared
    branches = 2 if segment.guided else 1
    keys = branches * sizes.layers * 2 * CONTEXT_TOKENS * sizes.dim * sizes.itemsize
    kept = text if keep_text else 0
    rows = segment.height // 8
    whole_maps, sliced_maps = sizes.peak_maps

    def denoising(maps: float) -> int:
        tokens = max(segment.tokens, segment.driving_tokens)
        return sizes.vae + int(maps * tokens * sizes.dim * sizes.itemsize / ranks) + beside.device

    def coding(maps: float, part: float = 1.0) -> int:
        map_bytes = sizes.vae_width * 4 * segment.height * segment.width * sizes.vae_itemsize / ranks
        band = segment.video if part < 1 else 0
        cache = beside.device if beside_vae else 0
        return sizes.vae + int((maps * map_bytes + band) * part) + segment.video + cache

    def placement(name: Name, vram: int, ram: int) -> Placement:
        loading = sizes.loaded if sizes.loaded > sizes.transformer else 0
        return Placement(name, vram + OVERHEAD, max(ram, loading * ranks) + beside.host + PROCESS, beside.name)

    # A text encoder that does not fit beside the transformer replaces it while it encodes the prompt of a later job.
    resident = max(text, kept + whole + keys + max(denoising(whole_maps), coding(VAE_MAPS)))
    if fsdp:  # no replacing with FSDP, where ranks must load models together
        return [placement("resident", max(resident, text + whole + keys), 0)]
    swap = max(text, kept + whole + keys + denoising(sliced_maps), kept + coding(BY_FRAMES_MAPS))
    streaming = 2 * sizes.block + denoising(sliced_maps)
    offload = sizes.outside + max(streaming, coding(BY_FRAMES_MAPS))
    # Several ranks share the picture's rows, so they need no bands.
    part = min(1.0, BAND / rows) if ranks == 1 else 1.0
    tiled = sizes.outside + max(streaming, coding(BY_FRAMES_MAPS, part))
    in_host = (whole + text if keep_text else max(whole, text)) * ranks
    return [
        placement("resident", resident, 0),
        placement("swap", swap, whole * ranks),
        placement("offload", offload, in_host),
        placement("tiled", tiled, in_host),
    ]


def choose(ways: list[Placement], vram: int, ram: int) -> list[Placement]:
    """The first placement that fits, and those after it as fallbacks. Only the last one if none fits."""
    first = next((index for index, way in enumerate(ways) if way.fits(vram, ram)), len(ways) - 1)
    return ways[first:]


def out_of_memory(error: BaseException, tried: Placement, segment: SegmentShape) -> str:
    """A message for the user: which placement ran out of device or host memory, and which settings need less."""
    reason = (str(error) or type(error).__name__).splitlines()[0]
    fewer = max(5, (segment.frames // 2) // 4 * 4 + 1)
    advice = [
        "a smaller video (preprocess.resolution_area)",
        f"a smaller clip_len (for instance {fewer})",
        "vae_dtype: bfloat16 or quantization: fp8",
        *(["driving_cache_fp8: true"] if tried.cache in ("device", "host") else []),
        "several GPUs (torchrun), with WAN_ENABLE_FSDP=1 to share the weights as well",
    ]
    if tried.cache in ("device", "inputs"):
        advice.insert(0, "driving_cache: host")
    if tried.name not in STREAMED:
        advice.insert(0, "placement: offload")
    return (
        f"memory ran out with placement {tried.name} ({WAYS[tried.name]}), for segments of "
        f"{segment.width}x{segment.height}x{segment.frames}: {reason}. Use {', or '.join(advice)}; "
        "`wan-animate plan` shows what fits"
    )
