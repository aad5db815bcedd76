"""What is known of a video file before its frames are read."""

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path


@dataclass(frozen=True)
class VideoInfo:
    """What a video file holds. Width and height are as shown: upright, in square pixels."""

    path: Path
    width: int
    height: int
    fps: Fraction
    frames: int
    duration: float
    """Seconds."""
    has_audio: bool
    start: Fraction = Fraction(0)
    """When the first frame is shown, by the container's clock, seconds: what its sound goes by too."""
    notices: tuple[str, ...] = ()
    """What was mended in reading it, in words."""


@dataclass(frozen=True)
class Sound:
    """What `find_sound` found in a file."""

    path: Path
    track: int | None = None
    """Index of the stream that is used; None: silence."""
    copied: bool = False
    """Whether its packets may stand in an mp4 as they are."""
    notices: tuple[str, ...] = ()
    """What is wrong with the sound and what becomes of it, in words."""
