"""Checks single files of a snapshot: each must be present, complete and of the expected kind. Loads no tensors.

Every function raises BadInput if a file is not as it should be.
"""

import json
import struct
import zipfile
from pathlib import Path
from typing import Any

from wan_orchestration.errors import BadInput
from wan_orchestration.formats import describe

# Keys of a server's error message, and kinds of content that servers send in place of a file.
_ERROR_KEYS = {"error", "errors", "message", "detail"}
_SENT_INSTEAD = ("a Git LFS pointer", "an HTML page", "a text", "a file of zeros")
_SHORT = 10_000  # bytes; error messages are shorter; tokenizers are longer, and slow to parse


def check_class(config: Path, expected: str) -> None:
    found = read_json(config).get("_class_name", expected)
    if found != expected:
        raise BadInput(f"{config}: the model is a {found}; expected {expected}")


def check_weights(stem: Path) -> list[Path]:
    """Checks and returns the shards in `stem`.safetensors.index.json, or the one file `stem`.safetensors."""
    index = stem.with_name(f"{stem.name}.safetensors.index.json")
    if index.exists():
        return check_shards(index)
    single = stem.with_name(f"{stem.name}.safetensors")
    safetensors_header(single)
    return [single]


def check_shards(index: Path) -> list[Path]:
    """Checks and returns the shards that an index lists."""
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise BadInput(f"{index}: weight_map is missing or empty; download the file again")
    shards = []
    for name in sorted(set(map(str, names.values()))):
        if Path(name).name != name:
            raise BadInput(f"{index}: shard {name!r} is not a plain file name")
        shard = index.with_name(name)
        if not shard.exists():
            raise BadInput(f"{shard} is missing: {index.name} lists it as a shard; download the file")
        safetensors_header(shard)
        shards.append(shard)
    return shards


def safetensors_header(file: Path) -> dict[str, Any]:
    """The header of a safetensors file, which must be as long as its header says."""
    size = check_present(file).stat().st_size
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(length) if length <= size else b"")
        header.pop("__metadata__", None)
        expected = 8 + length + max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
    except (struct.error, ValueError, AttributeError, KeyError, TypeError, IndexError):
        raise BadInput(
            f"{file} is {describe(file)} ({size} bytes), not a complete safetensors file; download it again"
        ) from None
    if size != expected:
        raise BadInput(f"{file} has {size} bytes, its header says {expected}; download it again")
    return header


def check_pickle(file: Path) -> None:
    """Checks a .pth file, a pickle or a zip archive. The directory is at an archive's end: a truncated one has none."""
    found = describe(check_present(file))
    if found not in ("a zip archive", "a Python pickle"):
        raise BadInput(f"{file} is {found}, not a PyTorch weight file; download it again")
    if found == "a zip archive" and not zipfile.is_zipfile(file):
        raise BadInput(f"{file} is cut off after {file.stat().st_size} bytes; download it again")


def check_tokenizer(folder: Path) -> None:
    read_json(folder / "tokenizer_config.json")
    present = [folder / name for name in ("tokenizer.json", "spiece.model") if (folder / name).exists()]
    if not present:
        raise BadInput(f"{folder} holds no tokenizer: tokenizer.json (or spiece.model) is missing; download it again")
    for file in present:
        found = describe(check_present(file))
        if found.startswith(_SENT_INSTEAD) or (file.suffix == ".json" and found != "a JSON text"):
            raise BadInput(f"{file} is {found}, not a tokenizer; download it again")
        if file.suffix == ".json" and file.stat().st_size < _SHORT:
            read_json(file)


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in a file."""
    try:
        content = json.loads(check_present(file).read_bytes())
    except ValueError as error:
        raise BadInput(f"{file} is {describe(file)} that cannot be read as JSON ({error}); download it again") from None
    if not isinstance(content, dict):
        raise BadInput(f"{file} holds a JSON {type(content).__name__}; expected an object")
    if errors := [value for key, value in content.items() if key.lower() in _ERROR_KEYS]:
        raise BadInput(f"{file} holds a server's error instead of its content: {errors[0]!r}; download it again")
    return content


def check_present(file: Path) -> Path:
    if not file.is_file():
        raise BadInput(f"{file} is missing from the snapshot; download it, or the whole snapshot, again")
    if file.stat().st_size == 0:
        raise BadInput(f"{file} is empty (0 bytes); download it again")
    return file
