"""A folder of weights: its layout, whether its files are whole, and the manifest that says what they must be.

No tensor is loaded: that each has its place and its shape is for the engine to check.
"""

import hashlib
import json
import os
import struct
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, ValidationError

from wan_orchestration.errors import BadInput
from wan_orchestration.formats import describe

Layout = Literal["original", "diffusers"]

MANIFEST = ".wan-manifest.json"

VAE = "Wan2.1_VAE.pth"
TEXT_ENCODER = "models_t5_umt5-xxl-enc-bf16.pth"
IMAGE_ENCODER = "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"
TRANSFORMER = "diffusion_pytorch_model"
TOKENIZER = "google/umt5-xxl"
RELIGHTING_LORA = "relighting_lora.ckpt"

# What the pipeline reads of a repository, as fnmatch patterns in which `*` crosses folders: the published ViTPose is
# a folder of many files. Not read: xlm-roberta-large, process_checkpoint/FLUX.1-Kontext-dev, scheduler, pictures.
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

# What servers send in place of a file.
_ERROR_KEYS = {"error", "errors", "message", "detail"}
_STAND_INS = ("a Git LFS pointer", "an HTML page", "a text", "a file of zeros")
_SHORT = 10_000  # bytes; an error is shorter, a tokenizer takes long to parse


@dataclass(frozen=True)
class Snapshot:
    """A snapshot whose needed files are all there."""

    path: Path
    layout: Layout
    revision: str | None
    source: str | None
    """Repository and hub of a download."""
    files: int
    """Files that the pipeline reads, optional ones included."""
    bytes: int
    parts: dict[str, int]
    """Their bytes by file or folder at the top."""
    dtype: str
    """How most of the transformer is stored, in safetensors' words: BF16, F32, ..."""
    fingerprint: str
    """Changes with the files: over names, sizes and, from the manifest, SHA-256 (else modification times)."""


def inside(path: str) -> str:
    """A path of a listing or manifest that stays in the snapshot's folder; ValueError for any other."""
    pure = PurePosixPath(path)
    if not path or pure.is_absolute() or ".." in pure.parts or "\\" in path or "\0" in path or path != str(pure):
        raise ValueError(f"path {path!r} would leave the snapshot's folder")
    return path


class FileEntry(BaseModel):
    size: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class Manifest(BaseModel):
    """What a finished download consists of. Written last, so that its presence says that the download ended."""

    repo: str
    endpoint: str
    revision: str
    files: dict[Annotated[str, AfterValidator(inside)], FileEntry]

    @classmethod
    def read(cls, folder: Path) -> "Manifest | None":
        """The folder's manifest; None where there is none or it cannot be read."""
        try:
            return cls.model_validate_json((folder / MANIFEST).read_bytes())
        except (OSError, ValidationError):
            return None

    def write(self, folder: Path) -> None:
        beside = folder / f"{MANIFEST}.tmp"
        with beside.open("w") as file:
            file.write(self.model_dump_json(indent=1))
            file.flush()
            os.fsync(file.fileno())
        beside.replace(folder / MANIFEST)

    def damage(self, folder: Path, hashes: bool = False) -> str | None:
        """The first file that is not as it was downloaded, in words; None where all are.

        Sizes only, which is instant, or with `hashes` every byte (minutes for the 14B weights).
        """
        for name, entry in self.files.items():
            file = folder / name
            if not file.is_file():
                return f"{file} is missing"
            if (size := file.stat().st_size) != entry.size:
                return f"{file} has {size} bytes instead of {entry.size}"
            if hashes and (found := sha256(file)) != entry.sha256:
                return f"{file} has SHA-256 {found} instead of {entry.sha256}"
        return None


def sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def open_snapshot(path: Path, revision: str | None = None) -> Snapshot:
    """Recognise the layout of the snapshot in `path` and check that each file that the pipeline needs is whole.

    `revision` defaults to the one in the folder's manifest, if any. Raises BadInput for a folder that is neither
    layout and for a file that is missing, empty, cut off or unreadable.
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
    """Check each needed file, and return the transformer's shards."""
    _check_class(path / "config.json", "WanAnimateModel")
    shards = _check_shards(path / f"{TRANSFORMER}.safetensors.index.json")
    for name in (VAE, TEXT_ENCODER, IMAGE_ENCODER):
        _check_pickle(path / name)
    _check_tokenizer(path / TOKENIZER)
    return shards


def _check_diffusers(path: Path) -> list[Path]:
    """Check each needed file, and return the transformer's shards."""
    _check_class(path / "transformer/config.json", "WanAnimateTransformer3DModel")
    shards = _check_weights(path / "transformer" / TRANSFORMER)
    for folder, stem in (("vae", TRANSFORMER), ("text_encoder", "model"), ("image_encoder", "model")):
        _read_json(path / folder / "config.json")
        _check_weights(path / folder / stem)
    _check_tokenizer(path / "tokenizer")
    return shards


def _check_class(config: Path, expected: str) -> None:
    found = _read_json(config).get("_class_name", expected)
    if found != expected:
        raise BadInput(f"{config}: the model is a {found}; expected {expected}, a snapshot of Wan2.2-Animate")


def _check_weights(stem: Path) -> list[Path]:
    """The shards under `stem`.safetensors.index.json, or the one file `stem`.safetensors."""
    index = stem.with_name(f"{stem.name}.safetensors.index.json")
    if index.exists():
        return _check_shards(index)
    single = stem.with_name(f"{stem.name}.safetensors")
    _safetensors_header(single)
    return [single]


def _check_shards(index: Path) -> list[Path]:
    names = _read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise BadInput(f"{index}: weight_map is missing or empty; download the file again")
    shards = []
    for name in sorted(set(map(str, names.values()))):
        if Path(name).name != name:
            raise BadInput(f"{index}: shard {name!r} is not a plain file name")
        shard = index.with_name(name)
        if not shard.exists():
            raise BadInput(f"{shard} is missing: {index.name} lists it as a shard; download the file")
        _safetensors_header(shard)
        shards.append(shard)
    return shards


def _safetensors_header(file: Path) -> dict[str, Any]:
    """The header of a safetensors file, after checking that the file is as long as the header says."""
    size = _check_present(file).stat().st_size
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(length) if length <= size else b"")
        header.pop("__metadata__", None)
        expected = 8 + length + max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
    except (struct.error, ValueError, AttributeError, KeyError, TypeError, IndexError):
        raise BadInput(
            f"{file} is {describe(file)} ({size} bytes), not a whole safetensors file; download it again"
        ) from None
    if size != expected:
        raise BadInput(f"{file} has {size} bytes, its header says {expected}; download it again")
    return header


def _check_pickle(file: Path) -> None:
    """A .pth file is a pickle, or a zip archive, whose directory is at the end: a file that was cut off has none."""
    found = describe(_check_present(file))
    if found not in ("a zip archive", "a Python pickle"):
        raise BadInput(f"{file} is {found}, not a PyTorch weight file; download it again")
    if found == "a zip archive" and not zipfile.is_zipfile(file):
        raise BadInput(f"{file} is cut off after {file.stat().st_size} bytes; download it again")


def _check_tokenizer(folder: Path) -> None:
    _read_json(folder / "tokenizer_config.json")
    present = [folder / name for name in ("tokenizer.json", "spiece.model") if (folder / name).exists()]
    if not present:
        raise BadInput(f"{folder} holds no tokenizer: tokenizer.json (or spiece.model) is missing; download it again")
    for file in present:
        found = describe(_check_present(file))
        if found.startswith(_STAND_INS) or (file.suffix == ".json" and found != "a JSON text"):
            raise BadInput(f"{file} is {found}, not a tokenizer; download it again")
        if file.suffix == ".json" and file.stat().st_size < _SHORT:
            _read_json(file)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(_check_present(file).read_bytes())
    except ValueError as error:
        raise BadInput(
            f"{file} is {describe(file)} that is not readable as JSON ({error}); download it again"
        ) from None
    if not isinstance(content, dict):
        raise BadInput(f"{file} holds a JSON {type(content).__name__}; expected an object")
    if said := [value for key, value in content.items() if key.lower() in _ERROR_KEYS]:
        raise BadInput(f"{file} holds a server's error instead of what it is named for: {said[0]!r}; download it again")
    return content


def _check_present(file: Path) -> Path:
    if not file.is_file():
        raise BadInput(f"{file} is missing from the snapshot; download it, or the whole snapshot, again")
    if file.stat().st_size == 0:
        raise BadInput(f"{file} is empty (0 bytes); download it again")
    return file


def _used_files(path: Path, layout: Layout) -> Iterator[Path]:
    patterns = (*NEEDED[layout], *OPTIONAL)
    for file in path.rglob("*"):
        name = file.relative_to(path).as_posix()
        if any(fnmatchcase(name, pattern) for pattern in patterns) and file.is_file():
            yield file


def _commonest_dtype(shards: list[Path]) -> str:
    sizes: Counter[str] = Counter()
    for shard in shards:
        for tensor in _safetensors_header(shard).values():
            start, end = tensor["data_offsets"]
            sizes[tensor["dtype"]] += end - start
    return sizes.most_common(1)[0][0] if sizes else "unknown"
