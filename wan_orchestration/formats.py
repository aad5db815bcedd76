"""Kinds of files: the video and picture formats that a job may use, and recognition of a file by its first bytes."""

import codecs
import re
from pathlib import Path

VIDEO_SUFFIXES = ("mp4", "mov", "webm", "mkv", "m4v", "avi", "mpg", "mpeg", "ts", "mts", "m2ts", "gif")
PICTURE_SUFFIXES = ("png", "jpg", "jpeg", "webp", "bmp", "heic", "heif", "avif", "gif", "tif", "tiff")

A_VIDEO = f"a video ({', '.join(VIDEO_SUFFIXES)})"
A_PICTURE = f"a picture ({', '.join(PICTURE_SUFFIXES)})"
"""The expected formats, in words for messages."""
A_TEXT = "a text"

PARTIAL = re.compile(r"\..+\.[A-Za-z0-9]{6}|.+\.(part|partial|filepart|crdownload|download|tmp)|.+~")
"""Names that rsync (`.name.a1B2c3`), browsers and copy programs give to incomplete files."""

HEAD_BYTES = 1024

_HEIC = rb"(hei[cxms]|hev[cxms])"
_AVIF = rb"(avif|avis)"
# First bytes, the kind in words, and the suffix ("" for files that no job may use). The first match counts.
_KINDS: list[tuple[bytes, str, str]] = [
    (rb"\x89PNG", "a PNG picture", "png"),
    (rb"\xff\xd8\xff", "a JPEG picture", "jpg"),
    (rb"RIFF....WEBP", "a WebP picture", "webp"),
    (rb"GIF8", "a GIF picture or animation", "gif"),
    (rb"BM.{4}\0\0\0\0", "a BMP picture", "bmp"),
    (rb"II\*\0....CR", "a raw camera picture", ""),
    (rb"FUJIFILMCCD-RAW|....ftypcrx ", "a raw camera picture", ""),
    (rb"II[*+]\0|MM\0[*+]", "a TIFF picture", "tif"),
    (rb"....ftyp(" + _AVIF + rb"|(mif1|msf1)(?=.{0,60}" + _AVIF + rb"))", "an AVIF picture", "avif"),
    (rb"....ftyp(" + _HEIC + rb"|mif1|msf1)", "a HEIC picture", "heic"),
    (rb"8BPS", "a Photoshop document (PSD)", ""),
    (rb"\xff\x0a|\0\0\0\x0cJXL ", "a JPEG XL picture", ""),
    (rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", "a JPEG 2000 picture", ""),
    (rb"v/1\x01", "an OpenEXR picture", ""),
    (rb"....ftyp(M4A|M4B)", "an M4A sound file", ""),
    (rb"....ftypqt  ", "a QuickTime video", "mov"),
    (rb"....ftyp", "an MP4 video", "mp4"),
    (rb"[\0-\x1f]...(moov|mdat|wide|free|skip|pnot)", "a QuickTime video", "mov"),
    (rb"\x1aE\xdf\xa3.{0,60}webm", "a WebM video", "webm"),
    (rb"\x1aE\xdf\xa3", "a Matroska video", "mkv"),
    (rb"RIFF....AVI ", "an AVI video", "avi"),
    (rb"\0\0\x01[\xb3\xba]", "an MPEG video", "mpg"),
    (rb"G.{187}G.{187}G", "an MPEG transport stream", "ts"),
    (rb"....G.{191}G.{191}G", "an MPEG transport stream", "m2ts"),
    (rb"FLV\x01", "a Flash video", ""),
    (rb"0&\xb2u\x8ef\xcf\x11", "a Windows Media file", ""),
    (rb"OggS", "an Ogg file", ""),
    (rb"RIFF....WAVE", "a WAV sound file", ""),
    (rb"ID3|\xff[\xfb\xf3\xf2]", "an MP3 sound file", ""),
    (rb"fLaC", "a FLAC sound file", ""),
    (rb"version https://git-lfs", "a Git LFS pointer (the file itself was not downloaded; run git lfs pull)", ""),
    (rb"(?i:(\xef\xbb\xbf)?\s*(<!--.{0,500}?-->\s*)?<(!doctype html|html|head|body))", "an HTML page", ""),
    (rb"(\xef\xbb\xbf)?\s*(<\?xml.*)?<svg", "an SVG drawing", ""),
    (rb"%PDF", "a PDF document", ""),
    (rb"PK\x03\x04", "a zip archive", ""),
    (rb"Rar!", "a RAR archive", ""),
    (rb"7z\xbc\xaf", "a 7z archive", ""),
    (rb"\x1f\x8b", "a gzip archive", ""),
    (rb".{257}ustar", "a tar archive", ""),
    (rb'\s*[\[{]\s*("[ -~]{3}|[\]}]\s*\Z)', "a JSON text", ""),
    (rb'.{8}\{\s*"', "a safetensors file", ""),
    (rb"\x80[\x02-\x05]", "a Python pickle", ""),
    (rb"GGUF", "a GGUF file", ""),
    (rb"\0+\Z", "a file of zeros, as an incomplete download leaves it", ""),
]
_PATTERNS = [(re.compile(pattern, re.DOTALL), words, suffix) for pattern, words, suffix in _KINDS]


def describe(path: Path) -> str:
    """The kind of a file by its first bytes, in words with an article: "an HTML page", "a JPEG picture"."""
    return recognise(path)[0]


def recognise(path: Path) -> tuple[str, str | None]:
    """The kind of a file in words, and the suffix of such files.

    The suffix is "" for a kind that no job may use as a video or picture, and None if the first bytes do not tell.
    """
    if path.is_dir():
        return "a folder", ""
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError as error:
        return f"something that cannot be read ({error.strerror})", None
    if not head:
        return "an empty file (0 bytes)", ""
    for pattern, words, suffix in _PATTERNS:
        if pattern.match(head):
            return words, suffix
    return (A_TEXT if _is_text(head) else "a file of an unknown kind"), None


def _is_text(head: bytes) -> bool:
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return True
    try:
        # Not decode(), because the head may end in the middle of a character.
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return b"\0" not in head
