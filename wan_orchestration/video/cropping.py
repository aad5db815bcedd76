"""Reads the crop that a container prescribes. FFmpeg reads it too, but PyAV does not expose it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from av.video.stream import VideoStream

# ISO 14496-12: the boxes from a track down to its sample descriptions, which begin 8 bytes into the last box.
_TO_SAMPLES = (b"mdia", b"minf", b"stbl", b"stsd")
# Bytes of a visual sample entry between its header and its boxes.
_VISUAL_ENTRY = 78
# Matroska, RFC 9559: numbers of elements.
_SEGMENT, _TRACKS, _CLUSTER, _ENTRY, _VIDEO = 0x18538067, 0x1654AE6B, 0x1F43B675, 0xAE, 0xE0
_WIDTH, _HEIGHT, _BOTTOM, _TOP, _LEFT, _RIGHT = 0xB0, 0xBA, 0x54AA, 0x54BB, 0x54CC, 0x54DD


@dataclass(frozen=True)
class Crop:
    """The number of pixels at each side that are not displayed."""

    left: int = 0
    top: int = 0
    right: int = 0
    bottom: int = 0


def read_crop(path: Path, stream: VideoStream) -> Crop:
    """The clean aperture of mp4 and mov, or the pixel crop of Matroska and WebM. Empty if the file has none."""
    kind = stream.container.format.name
    find = _in_mp4 if kind.startswith("mov") else _in_matroska if kind.startswith("matroska") else None
    if find is None:
        return Crop()
    with path.open("rb") as file:
        try:
            crop = find(file, stream)
        except (ValueError, ZeroDivisionError):
            return Crop()
    inside = min(crop.left, crop.top, crop.right, crop.bottom) >= 0
    some = crop.left + crop.right < stream.width and crop.top + crop.bottom < stream.height
    return crop if inside and some else Crop()


def _in_mp4(file: BinaryIO, stream: VideoStream) -> Crop:
    for track, end in _boxes(file, 0, file.seek(0, 2), b"moov", b"trak"):
        for header, _ in _boxes(file, track, end, b"tkhd"):
            version = _number(file, header, 1)
            number = _number(file, header + (20 if version else 12), 4)
            if number != stream.id:
                break
        else:
            for samples, samples_end in _boxes(file, track, end, *_TO_SAMPLES):
                entry = samples + 8
                entry_end = entry + _number(file, entry, 4)
                shape = _number(file, entry + 32, 2), _number(file, entry + 34, 2)
                for clap, _ in _boxes(file, entry + 8 + _VISUAL_ENTRY, min(entry_end, samples_end), b"clap"):
                    if shape == (stream.width, stream.height):
                        return _aperture(file, clap, *shape)
    return Crop()


def _aperture(file: BinaryIO, clap: int, width: int, height: int) -> Crop:
    file.seek(clap)
    values = [int.from_bytes(file.read(4), signed=True) for _ in range(8)]
    across, down, right, lower = (values[i] / values[i + 1] for i in range(0, 8, 2))
    left, top = round((width - across) / 2 + right), round((height - down) / 2 + lower)
    return Crop(left, top, width - round(across) - left, height - round(down) - top)


def _boxes(file: BinaryIO, at: int, end: int, kind: bytes, *inner: bytes) -> Iterator[tuple[int, int]]:
    """Start and end of the content of each box at the path `kind`, `inner`..., between `at` and `end`."""
    while at + 8 <= end:
        size, head = _number(file, at, 4), 8
        found = file.read(4)
        if size == 1:
            size, head = _number(file, at + 8, 8), 16
        size = size or end - at
        if size < head:
            return
        if found == kind:
            if inner:
                yield from _boxes(file, at + head, min(at + size, end), *inner)
            else:
                yield at + head, min(at + size, end)
        at += size


def _number(file: BinaryIO, at: int, size: int) -> int:
    file.seek(at)
    return int.from_bytes(file.read(size))


def _in_matroska(file: BinaryIO, stream: VideoStream) -> Crop:
    for segment, _, segment_end in _elements(file, 0, file.seek(0, 2), _SEGMENT):
        for tracks, _, tracks_end in _elements(file, segment, segment_end, _TRACKS):
            for entry, _, entry_end in _elements(file, tracks, tracks_end, _ENTRY):
                for video, _, video_end in _elements(file, entry, entry_end, _VIDEO):
                    sizes = {
                        number: _number(file, at, end - at)
                        for at, number, end in _elements(file, video, video_end, None)
                    }
                    if (sizes.get(_WIDTH), sizes.get(_HEIGHT)) == (stream.width, stream.height):
                        return Crop(*(sizes.get(side, 0) for side in (_LEFT, _TOP, _RIGHT, _BOTTOM)))
            return Crop()
    return Crop()


def _elements(file: BinaryIO, at: int, end: int, wanted: int | None) -> Iterator[tuple[int, int, int]]:
    """Each element between `at` and `end`, up to the first cluster: start of its content, number, end of its content.

    `wanted`: only elements with this number; None: all.
    """
    while at < end:
        file.seek(at)
        number, size = _variable(file, marked=True), _variable(file, marked=False)
        at = file.tell()
        # An unknown size extends to the parent's end.
        after = end if size is None else min(at + size, end)
        if number == _CLUSTER or number is None:
            return
        if wanted in (None, number):
            yield at, number, after
        at = after


def _variable(file: BinaryIO, *, marked: bool) -> int | None:
    """Reads a variable-length number of EBML; `marked` keeps its length marker. None: unknown size, or end of file."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    length = 9 - first[0].bit_length()
    value = int.from_bytes(first + file.read(length - 1))
    if marked:
        return value
    value &= (1 << 7 * length) - 1
    return None if value == (1 << 7 * length) - 1 else value
