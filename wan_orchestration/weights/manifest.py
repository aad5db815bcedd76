"""The manifest of a finished download: its files, with their sizes and SHA-256."""

import os
from collections.abc import Collection
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Annotated

from pydantic import AfterValidator, BaseModel, Field, ValidationError

from wan_orchestration.files import sha256

MANIFEST = ".wan-manifest.json"


def check_path(path: str) -> str:
    """Returns a path of a listing or manifest if it stays in the snapshot's folder. ValueError: it does not."""
    pure = PurePosixPath(path)
    if not path or pure.is_absolute() or ".." in pure.parts or "\\" in path or "\0" in path or path != str(pure):
        raise ValueError(f"path {path!r} would leave the snapshot's folder")
    return path


class FileEntry(BaseModel):
    size: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class Manifest(BaseModel):
    """The files of a finished download. It is written last, so a folder that has a manifest is complete."""

    repo: str
    endpoint: str
    revision: str
    files: dict[Annotated[str, AfterValidator(check_path)], FileEntry]

    @classmethod
    def read(cls, folder: Path) -> "Manifest | None":
        """The folder's manifest; None if it is missing or unreadable."""
        try:
            return cls.model_validate_json((folder / MANIFEST).read_bytes())
        except (OSError, ValidationError):
            return None

    def only(self, patterns: Collection[str]) -> "Manifest":
        """Without the files that no pattern (fnmatch) matches."""
        kept = {
            name: entry for name, entry in self.files.items() if any(fnmatchcase(name, pattern) for pattern in patterns)
        }
        return self.model_copy(update={"files": kept})

    def write(self, folder: Path) -> None:
        temporary = folder / f"{MANIFEST}.tmp"
        with temporary.open("w") as file:
            file.write(self.model_dump_json(indent=1))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(folder / MANIFEST)

    def damage(self, folder: Path, hashes: bool = False) -> str | None:
        """Describes the first file that differs from the download; None if no file does.

        Compares only sizes, which is instant; with `hashes` also every byte (minutes for the 14B weights).
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
