"""The private parts of ModelScope's client, `modelscope_hub`, that the download relies on.

The pinned version has no public counterparts: no option that turns the progress bars off, and no call that tells how
many bytes of an unfinished file have arrived.
"""

from functools import partial
from glob import escape
from pathlib import Path


def turn_off_progress_bars() -> None:
    """Turns off the client's progress bars, which would fill a run's log."""
    from modelscope_hub import _download
    from tqdm.auto import tqdm  # noqa: PLC0415

    _download.tqdm = partial(tqdm, disable=True)  # pyright: ignore[reportPrivateImportUsage]


def bytes_on_disk(file: Path, size: int) -> int:
    """Bytes of a file of `size` bytes that are on disk, in the file itself or in the client's partial files."""
    if file.exists():
        return min(file.stat().st_size, size)
    parts = [file.with_name(f"{file.name}.incomplete"), *file.parent.glob(f"{escape(file.name)}_[0-9]*_[0-9]*")]
    return min(sum(part.stat().st_size for part in parts if part.exists()), size)
