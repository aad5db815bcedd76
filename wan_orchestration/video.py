"""Video files in and out: frames by index, lossless clips, segments joined into one mp4.

Frames are RGB everywhere. Nothing here holds more than the frames that were asked for.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import numpy as np

Pixels = Literal["rgb", "yuv444", "gray"]


@dataclass(frozen=True)
class VideoInfo:
    """What a video file holds. Width and height are as shown, after rotation."""

    path: Path
    width: int
    height: int
    fps: Fraction
    frames: int
    duration: float
    """Seconds."""
    has_audio: bool


def probe(path: Path) -> VideoInfo:
    """Reads every packet and decodes the first frame. BadInput: missing, empty, truncated, without video."""
    raise NotImplementedError


class FrameReader:
    """Frames of a video by their place in presentation order, whatever their timestamps."""

    info: VideoInfo
    times: Sequence[float]
    """Presentation time of each frame in seconds, the first at 0: for choosing frames by time."""

    def __init__(self, path: Path) -> None:
        raise NotImplementedError

    def read(self, indices: Sequence[int]) -> np.ndarray:
        """(n, H, W, 3) uint8 RGB in the order asked; duplicates allowed. BadInput: a frame cannot be decoded."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        raise NotImplementedError

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        raise NotImplementedError


def iter_frames(path: Path) -> Iterator[np.ndarray]:
    """Every frame in order, each (H, W, 3) uint8 RGB."""
    raise NotImplementedError


def read_image(path: Path) -> np.ndarray:
    """(H, W, 3) uint8 RGB of a picture: turned upright by its EXIF data, transparency laid on white."""
    raise NotImplementedError


def pingpong(length: int, start: int, count: int) -> list[int]:
    """Places start .. start + count - 1 of the endless run 0 1 .. n-1 n-2 .. 1 0 1 .. over `length` frames."""
    raise NotImplementedError


def write_segment(path: Path, frames: Iterable[np.ndarray], fps: Fraction) -> int:
    """One self-contained piece of the final H.264 video from (H, W, 3) uint8 RGB frames; returns their number."""
    raise NotImplementedError


def write_lossless(path: Path, frames: Iterable[np.ndarray], fps: Fraction, pixels: Pixels = "rgb") -> int:
    """A lossless mp4 clip from (H, W, 3) uint8 RGB frames ((H, W) for gray); returns their number."""
    raise NotImplementedError


def concatenate(segments: Sequence[Path], output: Path, audio_from: Path | None = None) -> None:
    """Joins segments without re-encoding and adds the sound of `audio_from`, cut to the video's length."""
    raise NotImplementedError


def write_poster(path: Path, frame: np.ndarray) -> None:
    """A JPEG of one (H, W, 3) uint8 RGB frame."""
    raise NotImplementedError
