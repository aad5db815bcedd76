"""Where the models lie while a clip is made, and how much memory each way takes: an estimate from shapes.

The factors were found by running the engine's own code on tensors without data, as `tests/animate/memory` does again.
They hold for every width and size. On top comes what CUDA itself takes, `OVERHEAD`.
"""

from dataclasses import dataclass, replace
from typing import Literal

from wan_orchestration.animate.memory.sizes import Sizes
from wan_orchestration.animate.vae.bands import BAND, starts

Name = Literal["resident", "swap", "offload", "tiled"]

WAYS: dict[Name, str] = {
    "resident": "all models on the device, the text encoder freed after use",
    "swap": "the transformer in host memory while the VAE works; both compute in slices",
    "offload": "the transformer in host memory, each block brought to the device as the last one runs; text on the CPU",
    "tiled": "as offload, and the VAE works on bands of the picture, which are blended where they meet",
}

STREAMED: tuple[Name, ...] = ("offload", "tiled")
"""Those in which the transformer's blocks lie in host memory until they run."""

DENOISE_MAPS, SLICED_MAPS = 11.1, 6.1
"""Feature maps, (tokens, dim) in the transformer's dtype, that live at the worst moment; the latter in slices."""
VAE_MAPS, BY_FRAMES_MAPS = 12.7, 9.0
"""Feature maps of the outermost layer, (base_dim, 4, H, W), that live at the worst moment of decoding, without
the video itself; the latter frame by frame."""
OVERHEAD = int(1.5e9)
"""CUDA's context and libraries, and memory that fragments."""
PROCESS = int(4e9)
"""Host memory of the process besides weights: libraries, frames of a clip or two."""
CONTEXT_TOKENS = 257 + 512


def has_seams(name: Name, height: int, ranks: int) -> bool:
    """Whether a video of this height shows that it was made this way, by the seams of bands; ranks need no bands."""
    return name == "tiled" and ranks == 1 and len(starts(height // 8)) > 1


@dataclass(frozen=True)
class ClipShape:
    """What of a job decides memory and time."""

    height: int
    width: int
    frames: int
    guided: bool = False

    @property
    def tokens(self) -> int:
        """Of one forward: patches of 16 x 16 pixels in each latent frame and in the reference's."""
        return ((self.frames - 1) // 4 + 2) * (self.height // 16) * (self.width // 16)

    @property
    def video(self) -> int:
        """Bytes of the clip as the VAE reads or writes it, float32."""
        return 3 * self.frames * self.height * self.width * 4


@dataclass(frozen=True)
class Placement:
    """One way to place the models, with the most bytes it is expected to take on a device and in host memory."""

    name: Name
    vram: int = 0
    ram: int = 0

    def fits(self, vram: int, ram: int) -> bool:
        return self.vram <= vram and self.ram <= ram

    def __str__(self) -> str:
        memory = f"about {self.vram / 1e9:.1f} GB on the device and {self.ram / 1e9:.0f} GB of host memory"
        return f"{self.name} ({WAYS[self.name]}), {memory}"


def placements(
    sizes: Sizes, clip: ClipShape, ranks: int = 1, fsdp: bool = False, keep_text: bool = False
) -> list[Placement]:
    """The ways to place models of these sizes, the fastest first, with what each needs on each of the ranks.

    Ranks share tokens and the VAE's rows. With FSDP they also share weights, which then stay on the devices. With
    `keep_text` the text encoder stays on the device, but where blocks are streamed.
    """
    shared = ranks if fsdp else 1
    whole, text = sizes.transformer // shared, sizes.text_encoder // shared
    branches = 2 if clip.guided else 1
    keys = branches * sizes.layers * 2 * CONTEXT_TOKENS * sizes.dim * sizes.itemsize
    kept = text if keep_text else 0
    rows = clip.height // 8

    def denoising(maps: float) -> int:
        return sizes.vae + int(maps * clip.tokens * sizes.dim * sizes.itemsize / ranks)

    def coding(maps: float, part: float = 1.0) -> int:
        of_one = sizes.vae_width * 4 * clip.height * clip.width * sizes.vae_itemsize / ranks
        band = clip.video if part < 1 else 0
        return sizes.vae + int((maps * of_one + band) * part) + clip.video

    def placement(name: Name, vram: int, ram: int) -> Placement:
        loading = sizes.loaded if sizes.loaded > sizes.transformer else 0
        return Placement(name, vram + OVERHEAD, max(ram, loading * ranks) + PROCESS)

    # For a later job's new prompt, text encoders that do not fit beside the transformer take its place for a while.
    resident = max(text, kept + whole + keys + max(denoising(DENOISE_MAPS), coding(VAE_MAPS)))
    if fsdp:  # ranks could not agree on that
        return [placement("resident", max(resident, text + whole + keys), 0)]
    swap = max(text, kept + whole + keys + denoising(SLICED_MAPS), kept + coding(BY_FRAMES_MAPS))
    streaming = 2 * sizes.block + denoising(SLICED_MAPS)
    offload = sizes.outside + max(streaming, coding(BY_FRAMES_MAPS))
    # Ranks share the picture's rows, and then need no bands.
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
    """The first way that fits and those after it, to fall back on; the last one alone where none fits."""
    first = next((index for index, way in enumerate(ways) if way.fits(vram, ram)), len(ways) - 1)
    return ways[first:]


def out_of_memory(error: BaseException, tried: Placement, clip: ClipShape) -> str:
    """What to tell the user when the last way has failed for want of memory, of the device or of the host."""
    said = (str(error) or type(error).__name__).splitlines()[0]
    smaller = replace(clip, frames=max(5, (clip.frames // 2) // 4 * 4 + 1))
    advice = [
        "a smaller video (preprocess.resolution_area)",
        f"a smaller clip_len (for instance {smaller.frames})",
        "vae_dtype: bfloat16 or quantization: fp8",
        "several GPUs (torchrun), with WAN_ENABLE_FSDP=1 to share the weights as well",
    ]
    if tried.name not in STREAMED:
        advice.insert(0, "placement: offload")
    return (
        f"memory ran out with placement {tried.name} ({WAYS[tried.name]}), for clips of "
        f"{clip.width}x{clip.height}x{clip.frames}: {said}. Use {', or '.join(advice)}; "
        "`wan-animate plan` shows what fits"
    )
