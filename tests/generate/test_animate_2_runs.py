"""Runs of Wan-Animate-2 in processes of their own: one that is killed, and long ones."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from media import moving_frames
from PIL import Image

from benchmarks import long_video, random_snapshot
from wan_orchestration.video.writer import write_lossless

pytestmark = pytest.mark.heavy


@pytest.fixture
def snapshot(tmp_path):
    random_snapshot.write_animate_2(tmp_path / "snapshot")
    return tmp_path / "snapshot"


@pytest.fixture
def job(tmp_path, monkeypatch):
    """Makes raw jobs. Nobody is looked for in them."""
    monkeypatch.setenv("WAN_DATA_ROOT", str(tmp_path / "data"))
    monkeypatch.setenv("WAN_PREPROCESS_LIGHT_MODELS", str(tmp_path))

    def make(frames, height, width):
        monkeypatch.setenv("WAN_PREPROCESS_RESOLUTION_AREA", str(height * width))
        folder = tmp_path / f"job-{frames}"
        folder.mkdir()
        write_lossless(folder / "driving.mp4", moving_frames(frames, height, width, 1), 24)
        Image.fromarray(moving_frames(1, height, width, 3)[0]).save(folder / "reference.png")
        return folder

    return make


def test_a_killed_job_resumes_bit_for_bit(snapshot, job, tmp_path):
    command = [sys.executable, "-m", "wan_orchestration.infer", "--clip-len=5", "--sampling-steps=4"]
    command += [f"--src-root={job(13, 48, 64)}", f"--checkpoint-dir={snapshot}"]

    def into(name):
        return [*command, f"--output={tmp_path / name}", f"--save-frames={tmp_path / name}.npz"]

    victim = subprocess.Popen(into("killed"), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    state = tmp_path / "killed/.work/state.json"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not state.exists():
        assert victim.poll() is None
        time.sleep(0.005)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    assert len(json.loads(state.read_text())["clips"]) == 1
    results = [
        json.loads(subprocess.run(into(name), capture_output=True, check=True).stdout) for name in ("killed", "whole")
    ]
    assert [(result["resumed_clips"], result["clips"]) for result in results] == [(1, 3), (0, 3)]
    assert np.array_equal(*(np.load(tmp_path / f"{name}.npz")["frames"] for name in ("killed", "whole")))
    assert (tmp_path / "killed/video.mp4").read_bytes() == (tmp_path / "whole/video.mp4").read_bytes()


def test_memory_does_not_grow_with_the_video(snapshot, job):
    short, long = (
        long_video.measure(job(1 + 32 * segments, 128, 160), snapshot, clip_len=33, steps=1) for segments in (3, 12)
    )
    assert (short["clips"], long["clips"]) == (3, 12)
    print(f"peak memory: {short['peak_bytes'] / 2**20:.0f} MB, {long['peak_bytes'] / 2**20:.0f} MB")
    assert long["peak_bytes"] < 1.05 * short["peak_bytes"]
