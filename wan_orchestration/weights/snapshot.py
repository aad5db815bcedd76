"""A folder of weights: its layout, and the files that the pipeline needs.

No tensor is loaded. The engine checks later that each tensor is there and has the right shape.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal, NamedTuple

from wan_orchestration.errors import BadInput
from wan_orchestration.families.choose import FAMILIES, recognise_folder
from wan_orchestration.families.family import TRANSFORMER, Family, Layout, LayoutName
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


@dataclass(frozen=True)
class Snapshot:
    """A folder of weights that has all needed files."""

    path: Path
    family: str
    """Name of the model family."""
    variant: str
    """The checkpoint, one of `Family.variants`."""
    layout: LayoutName
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

    def file(self, part: Literal["vae", "text_encoder", "image_encoder", "tokenizer", "config"]) -> Path:
        """A model's file (original layout) or folder (Diffusers layout); the tokenizer's folder; the configuration."""
        return self.path / getattr(FAMILIES[self.family].layouts[self.layout], part)

    @property
    def transformer(self) -> Path:
        """The transformer's one file, the index of its files, or in the Diffusers layout its folder."""
        return self.path / FAMILIES[self.family].layouts[self.layout].transformer[self.variant]


class Contents(NamedTuple):
    """What a folder of weights shows of itself."""

    family: Family
    layout: LayoutName
    variants: list[str]
    """The checkpoints that are there; empty if the transformer is missing."""

    def files(self, variant: str) -> tuple[str, ...]:
        """Patterns of the files that the pipeline reads, optional ones included."""
        layout = self.family.layouts[self.layout]
        return (*layout.needed[variant], *layout.optional)


def look_into(path: Path) -> Contents:
    """Recognises the family, layout and variants of the snapshot in a folder. BadInput: it is none."""
    if not path.is_dir():
        found = "is not a folder" if path.exists() else "does not exist"
        raise BadInput(f"{path} {found}; expected the folder of a snapshot of {_titles()}")
    recognised = recognise_folder(path)
    if recognised is None:
        shown = sorted(entry.name for entry in path.iterdir() if not entry.name.startswith("."))
        found = ", ".join(shown[:8]) + (", ..." if len(shown) > 8 else "") or "nothing"
        raise BadInput(f"{path} is not a snapshot of {_titles()}: found {found}; expected {_examples()}")
    family, name = recognised
    layout = family.layouts[name]
    if mark := layout.mark:
        value = read_json(path / mark.file).get(mark.key)
        if not isinstance(value, str) or value not in mark.variants:
            raise BadInput(f"{path / mark.file}: {mark.key} is {value!r}; expected {' or '.join(mark.variants)}")
        return Contents(family, name, [mark.variants[value]])
    return Contents(family, name, [one for one in family.variants if (path / layout.transformer[one]).exists()])


def open_snapshot(path: Path, revision: str | None = None, variant: str | None = None) -> Snapshot:
    """Recognises the family and layout of the snapshot in `path`, and checks that each needed file is complete.

    `revision` defaults to the one in the manifest, if there is one; `variant` to the first that is there. BadInput: a
    folder of no known layout, of another variant, or a file that is missing, empty, cut off or unreadable.
    """
    contents = look_into(path)
    found, layout, variants = contents.family, contents.family.layouts[contents.layout], contents.variants
    variant = found.variant(variant or (variants or found.variants)[0])
    if variants and variant not in variants:
        wanted = "" if layout.mark else f" ({layout.transformer[variant]})"
        raise BadInput(
            f"{path} has the checkpoint {variants[0]} of {found.title}, but not {variant}{wanted}; set variant: "
            f"{variants[0]}, or use weights with {variant}"
        )
    shards = _check(path, layout, variant)
    manifest = Manifest.read(path)
    files = sorted(_used_files(path, contents.files(variant)))
    digest, parts = hashlib.sha256(), Counter[str]()
    for file in files:
        stat, name = file.stat(), file.relative_to(path).as_posix()
        parts[name.partition("/")[0]] += stat.st_size
        entry = manifest.files.get(name) if manifest else None
        content = entry.sha256 if entry and entry.size == stat.st_size else stat.st_mtime_ns
        digest.update(f"{name} {stat.st_size} {content}\n".encode())
    return Snapshot(
        path=path,
        family=found.name,
        variant=variant,
        layout=contents.layout,
        revision=revision or (manifest.revision if manifest else None),
        source=f"{manifest.repo} of {manifest.endpoint}" if manifest else None,
        files=len(files),
        bytes=parts.total(),
        parts=dict(parts),
        dtype=_commonest_dtype(shards),
        fingerprint=digest.hexdigest(),
    )


def _titles() -> str:
    return " or ".join(family.title for family in FAMILIES.values())


def _examples() -> str:
    """What folders of each family and layout hold."""
    return " or ".join(
        f"{layout.examples} ({family.title}, {name} layout)"
        for family in FAMILIES.values()
        for name, layout in family.layouts.items()
    )


def _check(path: Path, layout: Layout, variant: str) -> list[Path]:
    """Checks each needed file; returns the transformer's shards."""
    if layout.config not in layout.optional or (path / layout.config).exists():
        check_class(path / layout.config, layout.transformer_class)
    transformer = path / layout.transformer[variant]
    if transformer.suffix not in (".json", ".safetensors"):
        shards = check_weights(transformer / TRANSFORMER)
        for folder, stem in (
            (layout.vae, TRANSFORMER),
            (layout.text_encoder, "model"),
            (layout.image_encoder, "model"),
        ):
            read_json(path / folder / "config.json")
            check_weights(path / folder / stem)
    else:
        shards = check_shards(transformer) if transformer.suffix == ".json" else [transformer]
        for shard in shards:
            safetensors_header(shard)
        for name in (layout.vae, layout.text_encoder, layout.image_encoder):
            check_pickle(path / name)
    check_tokenizer(path / layout.tokenizer)
    return shards


def _used_files(path: Path, patterns: tuple[str, ...]) -> Iterator[Path]:
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
