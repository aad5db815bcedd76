"""Files: outputs that appear only when complete, checks of inputs, and the hash of a file."""

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wan_orchestration.errors import BadInput


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path` for a file or a folder. Renames it to `path` on success, else removes it.

    Replaces an older file or folder at `path`. A path must have one writer at a time, because each writer first removes
    what a killed one left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part, old = (path.with_name(f".{path.name}.{word}") for word in ("part", "old"))
    remove(part)
    try:
        yield part
        if part.is_dir():
            remove(old)
            if path.exists():
                path.rename(old)
            part.rename(path)
            remove(old)
        else:
            part.replace(path)
    finally:
        remove(part)


def remove(path: Path) -> None:
    """Removes a file, or a folder with its content. A missing path is no error."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def check_file(path: Path) -> None:
    """Checks a path that exists. BadInput: it is a broken link, or not a plain file."""
    if path.is_symlink() and not path.exists():
        raise BadInput(f"{path}: a broken link to {path.readlink()}")
    if not path.is_file():
        raise BadInput(f"{path}: found a folder or device, expected a file")


def sha256(path: Path) -> str:
    """SHA-256 of a file's content, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
