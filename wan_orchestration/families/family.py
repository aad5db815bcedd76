"""What every model family says of itself, without model code: defaults, segments, names of files."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Protocol

LayoutName = Literal["original", "diffusers"]

TRANSFORMER = "diffusion_pytorch_model"
"""Begins the names of weight files of diffusers' models."""


class Span(NamedTuple):
    """The frames of one segment: `length` of them from frame `start` of the clips on."""

    start: int
    length: int
    repeated: int
    """How many of them the segment before has made already."""


class DrivingCache(NamedTuple):
    """A way to keep what a family computes of a segment's driving frames, and the bytes that it takes."""

    name: str = ""
    """As in `GenerateSettings.driving_cache`; "" if nothing is kept."""
    device: int = 0
    """Of each rank's device, while a denoising step runs."""
    host: int = 0
    """Of host memory, for all ranks."""


class Maps(NamedTuple):
    """What decides the size of a feature map of the driving frames."""

    layers: int
    bytes: int
    """Of a map, (driving tokens, dim) in the transformer's dtype."""
    itemsize: int
    """Of a value in the transformer's dtype."""
    head_dim: int


class KeepSettings(Protocol):
    """The settings that decide what is kept of driving frames, see `GenerateSettings`."""

    driving_cache: Any
    driving_cache_fp8: bool


def keep_nothing(settings: KeepSettings, maps: Maps, ranks: int, copies: int) -> list[DrivingCache]:
    """For families that compute nothing of the driving frames in advance."""
    return [DrivingCache()]


class SegmentSettings(Protocol):
    """The settings that divide a video into segments, see `GenerateSettings`."""

    clip_len: int
    refert_num: Any
    trim_last_clip: bool


class VariantMark(NamedTuple):
    """Where a snapshot says which variant it is: a value in a JSON file."""

    file: str
    key: str
    variants: Mapping[str, str]
    """Variants by value."""


@dataclass(frozen=True)
class Layout:
    """Paths in a snapshot of one layout. Of the models: files in the original layout, folders in the Diffusers one."""

    needed: Mapping[str, tuple[str, ...]]
    """Patterns of the files that the pipeline reads (fnmatch, where `*` also matches "/"), by variant."""
    transformer: Mapping[str, str]
    """By variant. In the original layout the one file, or the index of several."""
    config: str
    """Configuration of the transformer."""
    transformer_class: str
    """The `_class_name` in it."""
    vae: str
    text_encoder: str
    image_encoder: str
    tokenizer: str
    signs: tuple[str, ...]
    """Patterns of paths by which a folder or a listing is recognised as a snapshot of this family and layout."""
    examples: str
    """What a folder of this layout holds, for messages."""
    optional: Mapping[str, str] = field(default_factory=dict)
    """Patterns of files that are used if they are there, with what they are for; "" if nobody misses them."""
    mark: VariantMark | None = None
    """None: the variants' transformers have names of their own, and may be in one folder."""


def diffusers_layout(
    variants: Sequence[str],
    transformer_class: str,
    signs: tuple[str, ...],
    optional: Mapping[str, str] = MappingProxyType({}),
    mark: VariantMark | None = None,
) -> Layout:
    """The Diffusers layout: its folders are the same for all families. See `Layout` for the arguments."""
    needed = ["model_index.json", *([mark.file] if mark else [])]
    needed += [
        f"{folder}/*.{ending}"
        for folder in ("transformer", "vae", "text_encoder", "image_encoder")
        for ending in ("json", "safetensors")
    ]
    return Layout(
        needed=dict.fromkeys(variants, (*needed, "tokenizer/*")),
        transformer=dict.fromkeys(variants, "transformer"),
        config="transformer/config.json",
        transformer_class=transformer_class,
        vae="vae",
        text_encoder="text_encoder",
        image_encoder="image_encoder",
        tokenizer="tokenizer",
        signs=signs,
        examples=f"{signs[0]}, transformer/, vae/, ...",
        optional=optional,
        mark=mark,
    )


@dataclass(frozen=True)
class Family:
    """A model family.

    Its folder, named as the family with `_` for `-`, also has parts with model code, which `part` imports: `animator`,
    `checkpoint` and `clips`.
    """

    name: str
    """As users write it in `model`."""
    title: str
    summary: str
    """For users who choose between families."""
    prompt_example: str | None
    """A prompt as the family needs it; None: the prompt matters little."""
    variants: tuple[str, ...]
    """Checkpoints. A family with a single one calls it "only"."""
    defaults: Mapping[str, Mapping[str, Any]]
    """By variant: values of `GenerateSettings` that differ from the fields' own defaults."""
    presets: Mapping[str, Mapping[str, Mapping[str, Any]]]
    """By variant and value of `GenerateSettings.preset`: the fields that it fills."""
    foreign: frozenset[str]
    """Fields of `GenerateSettings` that do not apply: they must keep their defaults."""
    foreign_preprocess: frozenset[str]
    """The same of `PreprocessSettings`."""
    fps: float | None
    """Frames a second of its clips, if the settings do not say; None: the driving video's."""
    spans: Callable[[SegmentSettings, int], list[Span]]
    """The segments of a video of so many frames."""
    clips: Callable[[str], Mapping[str, str]]
    """File names of the clips that a mode needs, by name of the input."""
    keep: Callable[[KeepSettings, Maps, int, int], list[DrivingCache]]
    """The ways to keep what is computed of driving frames that the settings allow, the fastest first. The last two
    arguments: how many ranks share them, and how many such groups of ranks there are."""
    driving: str
    """The clip that sets a video's length, rate and sound: a name in `clips`."""
    ready_clips: bool
    """Whether users may bring clips of their own."""
    repositories: Mapping[str, tuple[str, ...]]
    """By variant: repositories on ModelScope, the first by default."""
    layouts: Mapping[LayoutName, Layout]

    @property
    def reads_driving(self) -> bool:
        """Whether the transformer reads the driving frames themselves."""
        return self.keep is not keep_nothing

    def part(self, name: str) -> Any:
        """A module of the family's folder with model code."""
        return import_module(f"wan_orchestration.families.{self.name.replace('-', '_')}.{name}")

    def variant(self, wanted: str) -> str:
        """The checkpoint that the setting `variant` means."""
        return wanted if wanted in self.variants else self.variants[0]
