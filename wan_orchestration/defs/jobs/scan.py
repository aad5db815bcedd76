"""Scans the drop folder by names, sizes and times alone, so that thousands of folders take less than a second."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from wan_orchestration.formats import PARTIAL

PARTIAL_SECONDS = 900.0
"""After this time without a change, a partial file counts as abandoned."""


@dataclass(frozen=True)
class FolderState:
    """The state of a job folder whose files were not opened."""

    path: Path
    signature: str
    """Changes with the names, sizes and times of the folder's files."""
    changed_at: float
    """Unix time of the last change to anything in the folder, by the file system's clock."""
    partial: bool
    """Whether a file has a name that copying programs give to unfinished files."""

    def settled(self, now: float, settle_seconds: float) -> bool:
        """Whether nothing seems to be copied into the folder any more."""
        return now - self.changed_at >= (PARTIAL_SECONDS if self.partial else settle_seconds)


def scan(root: Path) -> list[FolderState]:
    """The folders in `root`, sorted by name, without hidden ones."""
    with os.scandir(root) as entries:
        folders = sorted(entry.path for entry in entries if entry.name[0] != "." and entry.is_dir())
    return [state for folder in folders if (state := scan_folder(Path(folder)))]


def scan_folder(folder: Path) -> FolderState | None:
    """One folder; None if it has just been renamed or removed.

    Uses change times (ctime), because copying programs give their copies the originals' modification times.
    """
    digest, partial, start = hashlib.sha256(), False, len(str(folder))
    try:
        changed_at = folder.stat().st_ctime
        for entry in _files(folder):
            link = entry.stat(follow_symlinks=False)
            stat = _target(entry) or link
            changed_at = max(changed_at, stat.st_ctime, link.st_ctime)
            partial = partial or PARTIAL.fullmatch(entry.name) is not None
            digest.update(f"{entry.path[start:]} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}\n".encode())
    except FileNotFoundError:
        return None
    return FolderState(folder, digest.hexdigest()[:16], changed_at, partial)


def _target(entry: os.DirEntry[str]) -> os.stat_result | None:
    """The status of the file behind a link; None for a broken link."""
    try:
        return entry.stat()
    except FileNotFoundError:
        return None


def _files(folder: Path) -> list[os.DirEntry[str]]:
    files = []
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.is_dir(follow_symlinks=False):
                files += _files(Path(entry.path))
            else:
                files.append(entry)
    return files
