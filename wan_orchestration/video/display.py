"""How a decoded frame is shown: its part, shape, orientation and colours, as players do it."""

import math
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import Colorspace, Interpolation, VideoReformatter
from av.video.stream import VideoStream

from wan_orchestration.video.cropping import read_crop
from wan_orchestration.video.tonemap import needs_light, primaries_of, to_sdr

# libswscale's default is quicker and darkens by 1/255.
EXACT = int(Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT)
# Ratios of a pixel's sides beyond this are mistakes in the file.
MOST_ASPECT = 8
# Degrees that an orientation may be off without a word.
NEARLY = 5

# AVColorSpace: BT.2020 with constant luminance, which libswscale does not know, and what it knows.
_BT2020_CONSTANT = 10
_KNOWN_MATRICES = (1, 4, 5, 6, 7, 9)


@dataclass(frozen=True)
class Orientation:
    """One of the eight ways to lay a picture: swap rows and columns, then turn them round."""

    swapped: bool = False
    rows: int = 1
    """-1: from bottom to top."""
    columns: int = 1
    off: float = 0.0
    """Degrees between the matrix and this orientation."""

    @classmethod
    def of(cls, frame: VideoFrame) -> "Orientation":
        """The nearest to the frame's display matrix."""
        matrix = frame.side_data.get("DISPLAYMATRIX")
        if matrix is None:
            return cls()
        # ISO 14496-12: x' = a x + c y, y' = b x + d y.
        a, b, _, c, d = map(float, np.frombuffer(matrix, np.int32)[:5])
        straight, across = math.hypot(a, d), math.hypot(b, c)
        if not straight and not across:
            return cls()
        off = math.degrees(math.atan2(*sorted((straight, across))))
        if straight >= across:
            return cls(False, -1 if d < 0 else 1, -1 if a < 0 else 1, off)
        return cls(True, -1 if b < 0 else 1, -1 if c < 0 else 1, off)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """(H, W, 3) or, swapped, (W, H, 3)."""
        return (image.swapaxes(0, 1) if self.swapped else image)[:: self.rows, :: self.columns]


class Display:
    """Frames of one stream as RGB, all of one size: in square pixels, upright, in BT.709 of the standard range."""

    size: tuple[int, int]
    """Width and height as shown, px."""
    notice: str | None = None

    def __init__(self, path: Path, stream: VideoStream, first: VideoFrame) -> None:
        """`first`: the first frame, whose orientation all have."""
        self._reformatter = VideoReformatter()
        self._shape = width, height = square_shape(stream)
        crop = read_crop(path, stream)
        across, down = width / stream.width, height / stream.height
        rows = range(height)[round(crop.top * down) : height - round(crop.bottom * down)]
        columns = range(width)[round(crop.left * across) : width - round(crop.right * across)]
        self._window = slice(rows.start, rows.stop), slice(columns.start, columns.stop)
        self._orientation = Orientation.of(first)
        self.size = (len(rows), len(columns)) if self._orientation.swapped else (len(columns), len(rows))
        if self._orientation.off > NEARLY:
            self.notice = (
                f"its display matrix turns by an angle {self._orientation.off:.0f} degrees off a right one; "
                "the nearest right angle was taken"
            )

    def rgb(self, frame: VideoFrame) -> np.ndarray:
        """(H, W, 3) uint8."""
        if needs_light(frame):
            # Not rgb48: libswscale's exact path gets its green wrong.
            image = to_sdr(self._reformat(frame, "gbrp16le"), frame.color_trc, primaries_of(frame))
        else:
            image = self._reformat(frame, "rgb24")
        return self._orientation(image[self._window])

    def _reformat(self, frame: VideoFrame, pixels: str) -> np.ndarray:
        return self._reformatter.reformat(
            frame, *self._shape, pixels, src_colorspace=_matrix(frame), interpolation=EXACT
        ).to_ndarray()


def square_shape(stream: VideoStream) -> tuple[int, int]:
    """Width and height in square pixels: the side that pixels are long on is scaled up, so that nothing is lost."""
    width, height = stream.width, stream.height
    aspect = stream.sample_aspect_ratio or Fraction(1)
    if not Fraction(1, MOST_ASPECT) <= aspect <= MOST_ASPECT:
        return width, height
    return (round(width * aspect), height) if aspect > 1 else (width, round(height / aspect))


def _matrix(frame: VideoFrame) -> Colorspace | None:
    """The matrix from YCbCr to RGB where the tag does not tell one: by size, as players take it."""
    if frame.colorspace in _KNOWN_MATRICES or frame.format.is_rgb or len(frame.format.components) < 3:
        return None
    if frame.colorspace == _BT2020_CONSTANT:
        return Colorspace.BT2020
    return Colorspace.ITU709 if frame.width >= 1280 or frame.height > 576 else Colorspace.ITU601
