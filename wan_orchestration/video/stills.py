"""Single pictures in and out."""

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from wan_orchestration.errors import BadInput
from wan_orchestration.files import replacing

MAX_PIXELS = 100_000_000


def read_image(path: Path) -> np.ndarray:
    """(H, W, 3) uint8 RGB of a picture: turned upright by its EXIF data, transparency laid on white.

    BadInput: missing, not a png, jpeg, webp or bmp picture, damaged, more than 100 million pixels.
    """
    path = Path(path)
    if not path.is_file():
        raise BadInput(f"{path}: no such file")
    try:
        with warnings.catch_warnings():
            # The limit is our own, below.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path, formats=("PNG", "JPEG", "WEBP", "BMP")) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise BadInput(
                        f"{path}: {image.width}x{image.height} pixels, at most {MAX_PIXELS // 10**6} million "
                        "are accepted; make it smaller"
                    )
                image.load()
                upright = ImageOps.exif_transpose(image)
                if upright.has_transparency_data:
                    white = Image.new("RGBA", upright.size, "white")
                    upright = Image.alpha_composite(white, upright.convert("RGBA"))
                return np.asarray(upright.convert("RGB"))
    except PermissionError:
        raise BadInput(f"{path}: no permission to read this file") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"{path}: not a whole png, jpeg, webp or bmp picture ({error})") from None


def write_poster(path: Path, frame: np.ndarray) -> None:
    """A JPEG of one (H, W, 3) uint8 RGB frame."""
    with replacing(path) as part:
        Image.fromarray(frame).save(part, "JPEG", quality=90)
