"""Files: outputs appear whole or not at all, inputs are plain files."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wan_orchestration.errors import BadInput


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a place beside `path` to write a file or a folder to; renamed to `path` on success, removed otherwise.

    An older file or folder at `path` is replaced. What a killed process left behind is removed by the next
    writer, so a path must have one writer at a time.
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
    """Removes a file or a folder with all that it holds; nothing there is no error."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def check_file(path: Path) -> None:
    """BadInput: a broken link, or no file."""
    if path.is_symlink() and not path.exists():
        raise BadInput(f"{path}: a broken link to {path.readlink()}")
    if not path.is_file():
        raise BadInput(f"{path}: found a folder or device, expected a file")
