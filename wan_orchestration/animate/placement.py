"""Where the models lie while a clip is made, and how much memory each way takes: an estimate from shapes.

The factors were found by running the engine's own code on tensors without data (`tests/animate/test_placement.py` does
so again); they hold for every width and size. On top comes what CUDA itself takes, `OVERHEAD`.
"""

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Literal

from diffusers.models.transformers.transformer_wan_animate import WanAnimateTransformer3DModel

from wan_orchestration.animate.sharding import kept_in_float32

Name = Literal["resident", "swap", "offload"]

WAYS: dict[Name, str] = {
    "resident": "all models on the device, the text encoder freed after use",
    "swap": "the transformer in host memory while the VAE works",
    "offload": "the transformer in host memory, each block brought to the device as the last one runs; text on the CPU",
}

DENOISE_MAPS = 11.1
"""Feature maps, (tokens, dim) in the transformer's dtype, that live at the worst moment of a block."""
VAE_MAPS = 12.8
"""Feature maps of the outermost layer, (base_dim, 4, H, W) float32, that live at the worst moment of decoding."""
OVERHEAD = int(1.5e9)
"""CUDA's context and libraries, and memory that fragments."""
PROCESS = int(4e9)
"""Host memory of the process besides weights: libraries, frames of a clip or two."""
CONTEXT_TOKENS = 257 + 512


@dataclass(frozen=True)
class Sizes:
    """Bytes of a snapshot's models in the dtypes they run in, and the widths that activations depend on."""

    transformer: int
    block: int
    """The largest block; the transformer's `blocks` and `face_adapter` are streamed one by one."""
    outside: int
    """The transformer without `blocks` and `face_adapter`."""
    text_encoder: int
    vae: int
    dim: int
    layers: int
    vae_width: int
    itemsize: int
    """Of the transformer's dtype."""

    @classmethod
    def of(
        cls, transformer: WanAnimateTransformer3DModel, text_encoder: int, vae: int, vae_width: int, itemsize: int
    ) -> "Sizes":
        """From a transformer, which may be without data; the other models' bytes are given."""
        streamed: dict[str, int] = defaultdict(int)
        whole = 0
        for name, parameter in transformer.named_parameters():
            size = parameter.numel() * (4 if kept_in_float32(transformer, name) else itemsize)
            whole += size
            if name.startswith(("blocks.", "face_adapter.")):
                streamed[name.rsplit(".", name.count(".") - 1)[0]] += size
        config = transformer.config
        return cls(
            transformer=whole,
            block=max(streamed.values()),
            outside=whole - sum(streamed.values()),
            text_encoder=text_encoder,
            vae=vae,
            dim=config["num_attention_heads"] * config["attention_head_dim"],
            layers=config["num_layers"],
            vae_width=vae_width,
            itemsize=itemsize,
        )


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
    `keep_text` the text encoder stays on the device, but for `offload`.
    """
    shared = ranks if fsdp else 1
    whole = sizes.transformer // shared
    activations = int(DENOISE_MAPS * clip.tokens * sizes.dim * sizes.itemsize / ranks)
    branches = 2 if clip.guided else 1
    keys = branches * sizes.layers * 2 * CONTEXT_TOKENS * sizes.dim * sizes.itemsize
    vae = sizes.vae + int(VAE_MAPS * sizes.vae_width * 4 * clip.height * clip.width * 4 / ranks)
    text = sizes.text_encoder // shared

    def placement(name: Name, vram: int, ram: int) -> Placement:
        return Placement(name, vram + OVERHEAD, ram + PROCESS)

    kept = text if keep_text else 0
    resident = placement("resident", max(text, kept + whole + keys + max(sizes.vae + activations, vae)), 0)
    if fsdp:
        return [resident]
    swap = max(text, kept + whole + keys + sizes.vae + activations, kept + vae)
    offload = sizes.outside + max(2 * sizes.block + sizes.vae + activations, vae)
    return [
        resident,
        placement("swap", swap, whole * ranks),
        placement("offload", offload, max(whole, sizes.text_encoder) * ranks),
    ]


def choose(ways: list[Placement], vram: int, ram: int) -> list[Placement]:
    """The first way that fits and those after it, to fall back on; the last one alone where none fits."""
    first = next((index for index, way in enumerate(ways) if way.fits(vram, ram)), len(ways) - 1)
    return ways[first:]


def out_of_memory(error: BaseException, tried: Placement, clip: ClipShape) -> str:
    """What to tell the user when the last way has failed for want of memory."""
    smaller = replace(clip, frames=max(5, (clip.frames // 2) // 4 * 4 + 1))
    advice = [
        "a smaller video (preprocess.resolution_area)",
        f"a smaller clip_len (for instance {smaller.frames})",
        "several GPUs (torchrun), with WAN_ENABLE_FSDP=1 to share the weights as well",
    ]
    if tried.name != "offload":
        advice.insert(0, "placement: offload")
    return (
        f"the device ran out of memory with placement {tried.name} ({WAYS[tried.name]}), for clips of "
        f"{clip.width}x{clip.height}x{clip.frames}: {str(error).splitlines()[0]}. Use {', or '.join(advice)}; "
        "`wan-animate plan` shows what fits"
    )
