"""What a file is, by its first bytes."""

from pathlib import Path

import pytest

from wan_orchestration.formats import describe, recognise

FTYP = b"\0\0\0\x18ftyp"


@pytest.mark.parametrize(
    ("head", "words", "suffix"),
    [
        (b"\n<!DOCTYPE html><html><body>Sign in", "an HTML page", ""),
        (b"\xef\xbb\xbf<!-- saved --> <HTML>", "an HTML page", ""),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "a Git LFS pointer", ""),
        (b"", "an empty file", ""),
        (bytes(4096), "a file of zeros", ""),
        (b"The free " + "é".encode() * 1000, "a text", None),
        (bytes(range(1, 256)), "a file of an unknown kind", None),
        (b"8BPS\0\x01", "a Photoshop document", ""),
        (b"PK\x03\x04", "a zip archive", ""),
        (b"%PDF-1.7", "a PDF document", ""),
        (b'{"error": {"code": 404}}', "a JSON text", ""),
        (b"\x10\0\0\0\0\0\0\0" + b'{"__metadata__"', "a safetensors file", ""),
        (FTYP + b"mif1\0\0\0\0mif1avifmiaf", "an AVIF picture", "avif"),
        (FTYP + b"mif1\0\0\0\0mif1heicmiaf", "a HEIC picture", "heic"),
        (FTYP + b"M4A \0\0\0\0", "an M4A sound file", ""),
        (FTYP + b"qt  \0\0\0\0", "a QuickTime video", "mov"),
        (FTYP + b"isom\0\0\0\0mp42avc1", "an MP4 video", "mp4"),
        (b"\x1aE\xdf\xa3\x9fB\x86\x81\x01B\x82\x84webm", "a WebM video", "webm"),
        (b"\x1aE\xdf\xa3\xa3B\x86\x81\x01B\x82\x88matroska", "a Matroska video", "mkv"),
        (b"RIFF\0\0\0\0AVI LIST", "an AVI video", "avi"),
        ((b"G" + bytes(187)) * 4, "an MPEG transport stream", "ts"),
        ((bytes(4) + b"G" + bytes(187)) * 4, "an MPEG transport stream", "m2ts"),
    ],
)
def test_by_first_bytes(tmp_path: Path, head: bytes, words: str, suffix: str | None) -> None:
    path = tmp_path / "file"
    path.write_bytes(head)
    assert recognise(path)[0].startswith(words), recognise(path)
    assert recognise(path)[1] == suffix
    assert describe(tmp_path) == "a folder"
    assert describe(tmp_path / "none") == "something that cannot be read (No such file or directory)"
