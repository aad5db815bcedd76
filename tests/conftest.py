"""Tiny job folders for all tests."""

import shutil
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from wan_orchestration.video import write_lossless

ROOT = Path(__file__).parents[1]


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
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "rgb24" if codec == "libx264rgb" else "yuv420p"
        track = None if sound is None else output.add_stream(sound_codec, rate=48000, layout="mono")
        for i, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image)
            frame.pts, frame.time_base = times[i] if times else i, 1 / Fraction(fps)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
        if track is not None:
            for start in range(0, sound.shape[1], 960):
                piece = av.AudioFrame.from_ndarray(sound[:, start : start + 960], format="fltp", layout="mono")
                piece.sample_rate, piece.pts, piece.time_base = 48000, start, Fraction(1, 48000)
                output.mux(track.encode(piece))
            output.mux(track.encode(None))
    return path


@pytest.fixture
def make_job(tmp_path: Path) -> Callable[..., Path]:
    """Makes job folders of lossless ready clips under tmp_path/jobs."""

    def make(
        key: str = "job",
        frames: int = 5,
        height: int = 64,
        width: int = 96,
        fps: Fraction | int = 30,
        face_frames: int | None = None,
        mode: str = "animate",
        yaml: str | None = None,
    ) -> Path:
        folder = tmp_path / "jobs" / key
        folder.mkdir(parents=True)
        fps = Fraction(fps)
        write_lossless(folder / "src_pose.mp4", moving_frames(frames, height, width, 1), fps)
        write_lossless(folder / "src_face.mp4", moving_frames(face_frames or frames, 512, 512, 2), fps)
        Image.fromarray(moving_frames(1, 80, 60, 3)[0]).save(folder / "src_ref.png")
        if mode == "replace":
            write_lossless(folder / "src_bg.mp4", moving_frames(frames, height, width, 4), fps)
            mask = np.zeros((height, width), np.uint8)
            mask[height // 4 : height // 2, width // 4 : width // 2] = 255
            write_lossless(folder / "src_mask.mp4", [mask] * frames, fps, "gray")
        if yaml is not None:
            (folder / "job.yaml").write_text(yaml, "utf-8")
        return folder

    return make


@pytest.fixture
def demo_job(tmp_path: Path) -> Path:
    """A copy of the demo job."""
    return shutil.copytree(ROOT / "data" / "jobs" / "demo", tmp_path / "jobs" / "demo")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference data beside the checkout; tests that want it are skipped where there is none."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"no reference data at {folder}")
    return folder


@pytest.fixture(scope="session")
def tiny_snapshot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A snapshot with random weights, five blocks deep."""
    from wan_orchestration.animate import random_snapshot

    folder = tmp_path_factory.mktemp("models") / "tiny"
    random_snapshot.write(folder, random_snapshot.Widths(layers=5))
    return folder
