"""Pictures, sound and videos for tests."""

import shutil
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from wan_orchestration.video.writer import write_lossless


def moving_frames(count: int, height: int, width: int, seed: int = 0) -> list[np.ndarray]:
    """Smooth pictures (H, W, 3) uint8 RGB, each unlike the others: a gradient under a wandering disc."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    ground = np.stack([x, y, np.full_like(x, rng.random())], -1) * 120 + 60
    frames = []
    for i in range(count):
        centre = 0.5 + 0.3 * np.sin([0.7 * i + seed, 1.1 * i + 2 * seed])
        disc = np.clip(0.18 - np.hypot(x - centre[0], y - centre[1]), 0, 0.1) * 10
        colour = 128 + 100 * np.sin(np.array([0.9, 1.7, 2.3]) * (i + 1) + seed)
        frames.append((ground * (1 - disc[..., None]) + colour * disc[..., None]).astype(np.uint8))
    return frames


def sine(seconds: float, rate: int = 48000, silent_until: float = 0.0) -> np.ndarray:
    """(1, samples) float32: a tone of 440 Hz that begins at `silent_until`."""
    t = np.arange(int(seconds * rate)) / rate
    return (0.5 * np.sin(2 * np.pi * 440 * t) * (t >= silent_until)).astype(np.float32)[None]


def without_decoder(path: Path) -> Path:
    """Makes the first AAC track of an mp4 or mov one whose codec nothing decodes, as of phones' spatial sound."""
    path.write_bytes(path.read_bytes().replace(b"mp4a", b"zzzz", 1).replace(b"esds", b"free", 1))
    return path


def write_video(
    path: Path,
    frames: Sequence[np.ndarray],
    fps: Fraction | int = 30,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    sound: np.ndarray | None = None,
    sound_codec: str = "aac",
    times: Sequence[int] | None = None,
    container: dict[str, str] | None = None,
) -> Path:
    """A video as other programs make them: B-frames, any codec, any `times` (in frames), sound at 48 kHz."""
    with av.open(str(path), "w", options=container or {}) as output:
        stream = output.add_stream(codec, rate=Fraction(fps), options=options or {})
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "rgb24" if codec == "libx264rgb" else "yuv420p"
        track = None if sound is None else output.add_stream(sound_codec, rate=48000, layout="mono")
        for i, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image)
            frame.pts, frame.time_base = times[i] if times else i, 1 / Fraction(fps)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
        if sound is not None:
            assert isinstance(track, av.AudioStream)
            for start in range(0, sound.shape[1], 960):
                piece = av.AudioFrame.from_ndarray(sound[:, start : start + 960], format="fltp", layout="mono")
                piece.sample_rate, piece.pts, piece.time_base = 48000, start, Fraction(1, 48000)
                output.mux(track.encode(piece))
            output.mux(track.encode(None))
    return path


def add_character(folder: Path, frames: int) -> None:
    """Add a second character to a folder of clips. Its mask lies apart from that of the first."""
    second = folder / "character_2"
    shutil.copytree(folder, second)
    Image.fromarray(moving_frames(1, 80, 60, 9)[0]).save(second / "src_ref.png")
    mask = np.zeros((64, 96), np.uint8)
    mask[:, 60:] = 255
    write_lossless(second / "src_mask.mp4", [mask] * frames, 30, "gray")
