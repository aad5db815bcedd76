"""Tiny job folders for all tests."""

import os
import shutil
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from figures import driving, picture_of, save_keypoints, walk
from media import moving_frames
from PIL import Image

from wan_orchestration.video.writer import write_lossless

ROOT = Path(__file__).parents[1]

if "PYTEST_XDIST_WORKER" in os.environ:
    # Tests that run side by side would wait for one another's threads.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True, scope="session")
def own_leases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Devices of these tests' own: nothing else on this machine is waited for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WAN_GPUS_LEASE_FOLDER", str(tmp_path_factory.mktemp("leases")))
        yield


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What launches keep for later ones stays out of the checkout."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WAN_CACHE_ROOT", str(tmp_path_factory.mktemp("cache")))
        yield


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
def make_raw_job(tmp_path: Path) -> Callable[..., Path]:
    """Makes job folders of a driving video of a drawn figure, its keypoints, and a picture; needs no network."""

    def make(key: str = "job", frames: int = 6, confidence: float | None = None) -> Path:
        folder = tmp_path / "jobs" / key
        poses = walk(frames)
        driving(folder, poses)
        if confidence is not None:
            for pose in poses:
                for part in (pose.body, pose.left_hand, pose.right_hand, pose.face):
                    part[:, 2] = confidence
            save_keypoints(folder / "keypoints.npz", poses)
        Image.fromarray(picture_of(poses[0])).save(folder / "reference.png")
        (folder / "job.yaml").write_text("preprocess: {retarget: off, resolution_area: 65536}")
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
    from benchmarks import random_snapshot

    folder = tmp_path_factory.mktemp("models") / "tiny"
    random_snapshot.write(folder, random_snapshot.Widths(layers=5))
    return folder


@pytest.fixture
def style(tmp_path):
    """A LoRA file, see `lora_files`."""
    from lora_files import STYLE, write_lora

    return write_lora(tmp_path / "style.safetensors", STYLE)


@pytest.fixture
def motion(tmp_path):
    """Another one. It changes one of the same weights."""
    from lora_files import MOTION, write_lora

    return write_lora(tmp_path / "motion.safetensors", MOTION, seed=1)
