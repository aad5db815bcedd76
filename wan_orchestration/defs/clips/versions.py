"""The data version of placed clips: what they hold, so that equal clips made anew leave a video fresh."""

import hashlib
from pathlib import Path

import dagster as dg


def clips_version(folder: Path) -> dg.DataVersion:
    """SHA-256 over the names and contents of the files in a clips folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        with path.open("rb") as content:
            digest.update(f"{path.name}\0{hashlib.file_digest(content, 'sha256').hexdigest()}\n".encode())
    return dg.DataVersion(digest.hexdigest())
