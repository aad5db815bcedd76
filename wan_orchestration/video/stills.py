"""Reads and writes single pictures."""

import struct
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.ExifTags import Base

from wan_orchestration.errors import BadInput
from wan_orchestration.files import replacing
from wan_orchestration.formats import A_PICTURE, PICTURE_SUFFIXES, recognise
from wan_orchestration.video.srgb import to_srgb

MAX_PIXELS = 100_000_000
TOO_LARGE = f"at most {MAX_PIXELS // 10**6} million pixels are accepted; make it smaller"

FORMATS = ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "AVIF"]
HEIF = ("heic", "heif")


def read_image(path: Path) -> np.ndarray:
    """A picture as (H, W, 3) uint8 sRGB: upright according to its EXIF data, with white behind transparency.

    Of an animation, the first frame; of a picture with a gain map, the version for standard displays.

    BadInput: missing, not a picture, damaged, more than 100 million pixels, more than 16 bits per sample.
    """
    path = Path(path)
    if not path.is_file():
        raise BadInput(f"{path}: no such file")
    try:
        # _open() checks the pixel limit. Other warnings are about data that are not used.
        with warnings.catch_warnings(action="ignore"):
            return np.asarray(_open(path))
    except BadInput:
        raise
    except PermissionError:
        raise BadInput(f"{path}: no permission to read this file") from None
    except Image.DecompressionBombError:
        raise BadInput(f"{path}: {TOO_LARGE}") from None
    except (OSError, EOFError, RuntimeError, SyntaxError, ValueError) as error:
        found, suffix = recognise(path)
        if suffix not in PICTURE_SUFFIXES:
            raise BadInput(f"{path}: found {found}, expected {A_PICTURE}") from None
        reason = "" if isinstance(error, UnidentifiedImageError) else f" ({error})"
        raise BadInput(
            f"{path}: found {found} that is damaged or of an unsupported kind{reason}; save it again"
        ) from None


def _open(path: Path) -> Image.Image:
    formats = FORMATS
    if recognise(path)[1] in HEIF:
        import pillow_heif  # noqa: PLC0415 (a large library, which few pictures need)

        pillow_heif.register_heif_opener()
        formats = ["HEIF"]
    with Image.open(path, formats=formats) as image:
        if image.width * image.height > MAX_PIXELS:
            raise BadInput(f"{path}: {image.width}x{image.height} pixels; {TOO_LARGE}")
        image.load()
        if image.mode in ("I", "F"):
            raise BadInput(f"{path}: found 32 bits per sample, expected 8 or 16; save it with fewer")
        colour, alpha = _planes(image)
        colour = to_srgb(path, image, colour)
        if alpha:
            white = Image.new("RGB", colour.size, "white")
            white.paste(colour, mask=alpha)
            colour = white
        orientation = _orientation(image)
    colour.info = {}
    colour.getexif()[Base.Orientation] = orientation
    return ImageOps.exif_transpose(colour)


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8. It is 1 for HEIC and TIFF, because their readers turn the picture upright."""
    try:
        return image.getexif().get(Base.Orientation, 1)
    except (OSError, SyntaxError, ValueError, TypeError, LookupError, struct.error):
        # A picture with damaged EXIF data is still usable.
        return 1


def _planes(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """The colours of a picture as L, RGB or CMYK with 8 bits, and its alpha channel as L."""
    if image.mode.startswith("I;16"):
        deep = np.asarray(image)
        clear = image.info.get("transparency")
        alpha = None if clear is None else Image.fromarray(np.where(deep == clear, 0, 255).astype(np.uint8))
        return Image.fromarray(((deep + np.uint32(128)) // 257).astype(np.uint8)), alpha
    if image.has_transparency_data:
        image = image.convert("LA" if image.mode in ("LA", "La") else "RGBA")
        return image.convert(image.mode[:-1]), image.getchannel("A")
    if image.mode in ("L", "RGB", "CMYK"):
        return image, None
    return image.convert("L" if image.mode == "1" else "RGB"), None


def write_poster(path: Path, frame: np.ndarray) -> None:
    """Writes one (H, W, 3) uint8 RGB frame as JPEG."""
    with replacing(path) as part:
        Image.fromarray(frame).save(part, "JPEG", quality=90)
