"""A folder of weights: its layout, and the files that the pipeline needs.

No tensor is loaded. The engine checks later that each tensor is there and has the right shape.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from wan_orchestration.errors import BadInput
from wan_orchestration.weights.file_checks import (
    check_class,
    check_pickle,
    check_shards,
    check_tokenizer,
    check_weights,
    read_json,
    safetensors_header,
)
from wan_orchestration.weights.manifest import Manifest

Layout = Literal["original", "diffusers"]

VAE = "Wan2.1_VAE.pth"
TEXT_ENCODER = "models_t5_umt5-xxl-enc-bf16.pth"
IMAGE_ENCODER = "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"
TRANSFORMER = "diffusion_pytorch_model"
TOKENIZER = "google/umt5-xxl"
RELIGHTING_LORA = "relighting_lora.ckpt"

# The files of a repository that the pipeline reads, as fnmatch patterns. `*` also matches "/": the published ViTPose
# is a folder of many files. Not read: xlm-roberta-large, process_checkpoint/FLUX.1-Kontext-dev, scheduler, pictures.
NEEDED: dict[Layout, tuple[str, ...]] = {
    "original": (
        "config.json",
        f"{TRANSFORMER}*.safetensors",
        f"{TRANSFORMER}.safetensors.index.json",
        VAE,
        TEXT_ENCODER,
        IMAGE_ENCODER,
        f"{TOKENIZER}/*",
    ),
    "diffusers": (
        "model_index.json",
        "transformer/*.json",
        "transformer/*.safetensors",
        "vae/*.json",
        "vae/*.safetensors",
        "text_encoder/*.json",
        "text_encoder/*.safetensors",
        "image_encoder/*.json",
        "image_encoder/*.safetensors",
        "tokenizer/*",
    ),
}
OPTIONAL: dict[str, str] = {
    RELIGHTING_LORA: "the relighting LoRA",
    "process_checkpoint/det/*": "the person detector for raw videos",
    "process_checkpoint/pose2d/*": "the ViTPose estimator for raw videos",
    "process_checkpoint/sam2/*": "SAM 2 for replacement masks",
}


@dataclass(frozen=True)
class Snapshot:
    """A folder of weights that has all needed files."""

    path: Path
    layout: Layout
    revision: str | None
    source: str | None
    """Repository and hub that it was downloaded from; None if unknown."""
    files: int
    """Number of files that the pipeline reads, optional ones included."""
    bytes: int
    """Total size of these files."""
    parts: dict[str, int]
    """Bytes of each file or folder at the top level."""
    dtype: str
    """Data type of most of the transformer, as safetensors names it: BF16, F32, ..."""
    fingerprint: str
    """Hash over the files' names, sizes and SHA-256 from the manifest. Without a manifest, modification times count."""
    family: str = "animate"
    variant: str = "only"


def open_snapshot(path: Path, revision: str | None = None) -> Snapshot:
    """Recognises the layout of the snapshot in `path` and checks that each needed file is complete.

    `revision` defaults to the one in the manifest, if there is one. BadInput: a folder in neither layout, or a file
    that is missing, empty, cut off or unreadable.
    """
    if not path.is_dir():
        found = "is not a folder" if path.exists() else "does not exist"
        raise BadInput(f"{path} {found}; expected the folder of a Wan2.2-Animate snapshot")
    layout = _layout(path)
    shards = _check_original(path) if layout == "original" else _check_diffusers(path)
    manifest = Manifest.read(path)
    files = sorted(_used_files(path, layout))
    digest, parts = hashlib.sha256(), Counter[str]()
    for file in files:
        stat, name = file.stat(), file.relative_to(path).as_posix()
        parts[name.partition("/")[0]] += stat.st_size
        entry = manifest.files.get(name) if manifest else None
        content = entry.sha256 if entry and entry.size == stat.st_size else stat.st_mtime_ns
        digest.update(f"{name} {stat.st_size} {content}\n".encode())
    return Snapshot(
        path=path,
        layout=layout,
        revision=revision or (manifest.revision if manifest else None),
        source=f"{manifest.repo} of {manifest.endpoint}" if manifest else None,
        files=len(files),
        bytes=parts.total(),
        parts=dict(parts),
        dtype=_commonest_dtype(shards),
        fingerprint=digest.hexdigest(),
    )


def _layout(path: Path) -> Layout:
    names = {entry.name for entry in path.iterdir()}
    if "model_index.json" in names or "transformer" in names:
        return "diffusers"
    if names & {VAE, TEXT_ENCODER, IMAGE_ENCODER} or any(name.startswith(TRANSFORMER) for name in names):
        return "original"
    shown = sorted(name for name in names if not name.startswith("."))
    found = ", ".join(shown[:8]) + (", ..." if len(shown) > 8 else "") or "nothing"
    raise BadInput(
        f"{path} is not a Wan2.2-Animate snapshot: found {found}; expected config.json, {TRANSFORMER}-*.safetensors, "
        f"{VAE}, ... (the original layout) or model_index.json, transformer/, vae/, ... (the Diffusers layout)"
    )


def _check_original(path: Path) -> list[Path]:
    """Checks each needed file; returns the transformer's shards."""
    check_class(path / "config.json", "WanAnimateModel")
    shards = check_shards(path / f"{TRANSFORMER}.safetensors.index.json")
    for name in (VAE, TEXT_ENCODER, IMAGE_ENCODER):
        check_pickle(path / name)
    check_tokenizer(path / TOKENIZER)
    return shards


def _check_diffusers(path: Path) -> list[Path]:
    """Checks each needed file; returns the transformer's shards."""
    check_class(path / "transformer/config.json", "WanAnimateTransformer3DModel")
    shards = check_weights(path / "transformer" / TRANSFORMER)
    for folder, stem in (("vae", TRANSFORMER), ("text_encoder", "model"), ("image_encoder", "model")):
        read_json(path / folder / "config.json")
        check_weights(path / folder / stem)
    check_tokenizer(path / "tokenizer")
    return shards


def _used_files(path: Path, layout: Layout) -> Iterator[Path]:
    patterns = (*NEEDED[layout], *OPTIONAL)
    for file in path.rglob("*"):
        name = file.relative_to(path).as_posix()
        if any(fnmatchcase(name, pattern) for pattern in patterns) and file.is_file():
            yield file


def _commonest_dtype(shards: list[Path]) -> str:
    sizes: Counter[str] = Counter()
    for shard in shards:
        for tensor in safetensors_header(shard).values():
            start, end = tensor["data_offsets"]
            sizes[tensor["dtype"]] += end - start
    return sizes.most_common(1)[0][0] if sizes else "unknown"
