"""Pictures as metadata that the UI shows inline. Dagster stores them in its database, so they are small."""

import base64
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg

if TYPE_CHECKING:
    import numpy as np

POSTER_WIDTH, POSTER_BYTES = 240, 12_000
SHEET_WIDTH, SHEET_BYTES = 900, 36_000


def poster(path: Path) -> dg.MarkdownMetadataValue:
    """A picture as a small inline JPEG."""
    return _inline(path, "poster", POSTER_WIDTH, POSTER_BYTES)


def animation(webp: bytes, name: str = "preview") -> dg.MarkdownMetadataValue:
    """An animated WebP, unchanged: `quality/thumbnails.py` makes it small enough."""
    return dg.MetadataValue.md(f"![{name}](data:image/webp;base64,{base64.b64encode(webp).decode()})")


def picture(source: "Path | np.ndarray", name: str) -> dg.MarkdownMetadataValue:
    """A detailed picture, a file or (H, W, 3) uint8 RGB, as an inline JPEG of at most 50 KB of text."""
    return _inline(source, name, SHEET_WIDTH, SHEET_BYTES)


def _inline(source: "Path | np.ndarray", name: str, width: int, most_bytes: int) -> dg.MarkdownMetadataValue:
    from PIL import Image  # noqa: PLC0415 (only a run needs it)

    with Image.open(source) if isinstance(source, Path) else Image.fromarray(source) as image:
        image.thumbnail((width, width))
        for quality in (70, 50, 30, 15, 5):
            jpeg = BytesIO()
            image.convert("RGB").save(jpeg, "JPEG", quality=quality)
            if jpeg.tell() <= most_bytes:
                break
    return dg.MetadataValue.md(f"![{name}](data:image/jpeg;base64,{base64.b64encode(jpeg.getvalue()).decode()})")
