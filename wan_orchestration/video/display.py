"""Displays decoded frames as players do: applies crop, pixel shape, orientation and colours."""

import math
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import Colorspace, Interpolation, VideoReformatter
from av.video.stream import VideoStream

from wan_orchestration.video.cropping import read_crop
from wan_orchestration.video.tonemap import needs_conversion, primaries_of, to_sdr

# libswscale's default is faster, but makes pictures darker by 1/255.
EXACT = int(Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT)
# A larger ratio of a pixel's sides is an error in the file, and is ignored.
MOST_ASPECT = 8
# Degrees by which an orientation may differ from a right angle without a notice.
NEARLY = 5

# Values of AVColorSpace: BT.2020 with constant luminance, which libswscale does not support, and those it does.
_BT2020_CONSTANT = 10
_KNOWN_MATRICES = (1, 4, 5, 6, 7, 9)


@dataclass(frozen=True)
class Orientation:
    """One of the eight orientations of a picture: rows and columns are first swapped, then reversed."""

    swapped: bool = False
    rows: int = 1
    """-1: reversed, from bottom to top."""
    columns: int = 1
    """-1: reversed, from right to left."""
    off: float = 0.0
    """By how many degrees the display matrix differs from this orientation."""

    @classmethod
    def of(cls, frame: VideoFrame) -> "Orientation":
        """The orientation nearest to the frame's display matrix."""
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
        """The (H, W, 3) image in this orientation: (H, W, 3), or (W, H, 3) if swapped."""
        return (image.swapaxes(0, 1) if self.swapped else image)[:: self.rows, :: self.columns]


class Display:
    """Converts the frames of one stream to RGB of one size: upright, square pixels, BT.709, standard dynamic range."""

    size: tuple[int, int]
    """Width and height as displayed, px."""
    notice: str | None = None

    def __init__(self, path: Path, stream: VideoStream, first: VideoFrame) -> None:
        """`first`: the first frame, whose orientation applies to all frames."""
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
                f"its display matrix turns by an angle that is {self._orientation.off:.0f} degrees off a right angle; "
                "the nearest right angle was used"
            )

    def rgb(self, frame: VideoFrame) -> np.ndarray:
        """The frame as (H, W, 3) uint8 RGB."""
        if needs_conversion(frame):
            # Not rgb48: libswscale's exact path computes a wrong green.
            image = to_sdr(self._reformat(frame, "gbrp16le"), frame.color_trc, primaries_of(frame))
        else:
            image = self._reformat(frame, "rgb24")
        return self._orientation(image[self._window])

    def _reformat(self, frame: VideoFrame, pixels: str) -> np.ndarray:
        return self._reformatter.reformat(
            frame, *self._shape, pixels, src_colorspace=_matrix(frame), interpolation=EXACT
        ).to_ndarray()


def square_shape(stream: VideoStream) -> tuple[int, int]:
    """Width and height in square pixels. The side along which pixels are longer is scaled up, to keep all detail."""
    width, height = stream.width, stream.height
    aspect = stream.sample_aspect_ratio or Fraction(1)
    if not Fraction(1, MOST_ASPECT) <= aspect <= MOST_ASPECT:
        return width, height
    return (round(width * aspect), height) if aspect > 1 else (width, round(height / aspect))


def _matrix(frame: VideoFrame) -> Colorspace | None:
    """The YCbCr matrix of a frame without a usable tag, chosen by size as players do. None: use the tag."""
    if frame.colorspace in _KNOWN_MATRICES or frame.format.is_rgb or len(frame.format.components) < 3:
        return None
    if frame.colorspace == _BT2020_CONSTANT:
        return Colorspace.BT2020
    return Colorspace.ITU709 if frame.width >= 1280 or frame.height > 576 else Colorspace.ITU601
