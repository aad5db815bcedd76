"""Pictures that the UI shows inline."""

import base64
from io import BytesIO
from pathlib import Path

import dagster as dg

WIDTH = 240
MAX_BYTES = 12_000


def poster(path: Path) -> dg.MarkdownMetadataValue:
    """A picture as a small inline JPEG: each run keeps it in Dagster's database."""
    from PIL import Image  # noqa: PLC0415 (only a run needs it)

    with Image.open(path) as image:
        image.thumbnail((WIDTH, WIDTH))
        for quality in (70, 50, 30, 15):
            jpeg = BytesIO()
            image.convert("RGB").save(jpeg, "JPEG", quality=quality)
            if jpeg.tell() <= MAX_BYTES:
                break
    return dg.MetadataValue.md(f"![poster](data:image/jpeg;base64,{base64.b64encode(jpeg.getvalue()).decode()})")
