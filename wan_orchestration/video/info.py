"""Facts about a video file and its sound that are known before its frames are used."""

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path


@dataclass(frozen=True)
class VideoInfo:
    """Facts about a video file. Width and height are as displayed: upright, in square pixels."""

    path: Path
    width: int
    height: int
    fps: Fraction
    frames: int
    duration: float
    """Seconds."""
    has_audio: bool
    start: Fraction = Fraction(0)
    """When the first frame is displayed, in seconds on the container's clock, which is the sound's too."""
    notices: tuple[str, ...] = ()
    """Flaws of the file that the reader corrects, in words."""


@dataclass(frozen=True)
class Sound:
    """The sound of a file, as `find_sound` found it."""

    path: Path
    track: int | None = None
    """Index of the audio stream that is used. None: silence."""
    copied: bool = False
    """Whether an mp4 can hold its packets without reencoding."""
    notices: tuple[str, ...] = ()
    """Flaws of the sound and their consequences, in words."""
