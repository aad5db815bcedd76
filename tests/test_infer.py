"""`infer` as a user runs it: it gets flags and prints one JSON object."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from wan_orchestration import infer
from wan_orchestration.cli import flags
from wan_orchestration.protocol import leases
from wan_orchestration.settings.environment import World
from wan_orchestration.settings.generate import GenerateSettings
from wan_orchestration.video.writer import write_lossless

CONTRACT = [
    "job_id",
    "status",
    "video_path",
    "created_at",
    "started_at",
    "finished_at",
    "frames",
    "fps",
    "width",
    "height",
    "seconds",
    "settings",
    "snapshot",
    "error",
]


@pytest.fixture
def call(tiny_snapshot, tmp_path, capsys, monkeypatch):
    """Runs `infer` in this process; returns its exit code, JSON and standard error."""
    monkeypatch.setenv("WAN_DATA_ROOT", str(tmp_path / "data"))
    monkeypatch.setenv("WAN_CHECKPOINT_DIR", str(tiny_snapshot))

    def run(job, *flags):
        code = infer.main([f"--src-root={job}", "--clip-len=5", "--sampling-steps=2", *flags])
        captured = capsys.readouterr()
        return code, json.loads(captured.out), captured.err

    return run


def test_smoke_test_of_the_readme(make_job, tiny_snapshot, tmp_path):
    """In a process of its own, to see that nothing else reaches stdout."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "wan_orchestration.infer",
            f"--src-root={make_job('demo')}",
            "--sampling-steps",
            "2",
            "--clip-len",
            "5",
            "--output",
            str(tmp_path / "out"),
        ],
        env={"PATH": "/usr/bin:/bin", "WAN_CHECKPOINT_DIR": str(tiny_snapshot), "WAN_DATA_ROOT": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    result = json.loads(done.stdout)
    assert done.returncode == 0, done.stderr
    assert set(CONTRACT) <= result.keys()
    assert (result["job_id"], result["status"], result["frames"]) == ("demo", "succeeded", 5)
    assert "demo: starting the engine\n" in done.stderr and "demo: segment 1 of 1, 5 frames in" in done.stderr
    assert Path(result["video_path"]).is_file()


def test_flags_win_over_the_job_file(make_job, call, tmp_path, monkeypatch):
    monkeypatch.setenv("WAN_DEFAULT_SHIFT", "3")
    monkeypatch.setenv("WAN_DEFAULT_SEED", "1")
    job = make_job(yaml="generate: {sampling_steps: 9, seed: 2, shift: 4}")
    code, result, _ = call(job, "--shift=7.5", "--no-offload-model")
    assert (code, result["error"]) == (0, None)
    settings = result["settings"]
    assert (settings["shift"], settings["seed"], settings["sampling_steps"]) == (7.5, 2, 2)
    assert settings["offload_model"] is False
    assert result["video_path"] == str(tmp_path / "data/videos/job/video.mp4")


def test_replace_flag(make_job, call):
    code, result, _ = call(make_job(mode="replace"), "--replace")
    assert (code, result["settings"]["mode"]) == (0, "replace")


def test_help_lists_every_setting_with_its_default(capsys):
    with pytest.raises(SystemExit):
        infer.main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for name, field in GenerateSettings.model_fields.items():
        assert f"--{name.replace('_', '-')}" in text
        default = f"(default: {flags.shorten(field.get_default())}"
        assert f"{default})" in text or f"{default}; of animate-2: " in text


def sound_only(path):
    with av.open(str(path), "w") as output:
        track = output.add_stream("aac", rate=48000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 48000
        output.mux(track.encode(frame))
        output.mux(track.encode(None))


def cut_in_half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def frames(count, height=64, width=96):
    return lambda path: write_lossless(path, [np.full((height, width, 3), 9 * i, np.uint8) for i in range(count)], 30)


BAD_FILES = {
    "missing": ("src_face.mp4", Path.unlink, ["src_face.mp4"]),
    "empty": ("src_pose.mp4", lambda path: path.write_bytes(b""), ["src_pose.mp4"]),
    "truncated": ("src_pose.mp4", cut_in_half, ["src_pose.mp4"]),
    "sound only": ("src_pose.mp4", sound_only, ["src_pose.mp4"]),
    "1 frame": ("src_pose.mp4", frames(1), ["src_pose.mp4", "1 frame", "2 or more"]),
    "not a multiple of 16": ("src_pose.mp4", frames(5, 68), ["src_pose.mp4", "96x68", "multiples of 16"]),
    "face of 1 frame": ("src_face.mp4", frames(1, 512, 512), ["src_face.mp4", "1 frame"]),
    "face of another size": ("src_face.mp4", frames(5), ["src_face.mp4", "96x64", "512x512"]),
    "reference is no picture": ("src_ref.png", lambda path: path.write_text("x"), ["src_ref.png"]),
    "reference of 1 pixel": ("src_ref.png", lambda path: Image.new("RGB", (1, 1)).save(path), ["src_ref.png"]),
    "unknown key": ("job.yaml", lambda path: path.write_text("generate: {stepps: 3}"), ["job.yaml", "stepps"]),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_file(case, make_job, call, tmp_path):
    name, damage, words = BAD_FILES[case]
    job = make_job()
    damage(job / name)
    refused(call(job), words, tmp_path)


BAD_FLAGS = {
    "clip_len": (["--clip-len=6"], ["clip_len", "6", "4n+1"]),
    "refert_num": (["--refert-num=5"], ["clip_len 5", "refert_num 5"]),
    "fewer frames than refert_num": (["--refert-num=5", "--clip-len=9"], ["src_pose.mp4", "5 frames", "refert_num 5"]),
    "replace without its clips": (["--replace"], ["src_bg.mp4", "src_mask.mp4"]),
    "cuda where there is none": (["--device=cuda"], ["device", "cuda"]),
    "type": (["--sampling-steps=many"], ["--sampling-steps", "many"]),
    "unknown flag": (["--stepps=3"], ["--stepps"]),
    "lora file": (["--lora=/nowhere.safetensors:0.5"], ["/nowhere.safetensors"]),
    "snapshot": (["--checkpoint-dir=/nowhere"], ["/nowhere"]),
    "output": (["--output=/proc/nowhere"], ["/proc/nowhere"]),
}


@pytest.mark.parametrize("case", BAD_FLAGS)
def test_bad_flag(case, make_job, call, tmp_path):
    import torch

    if case == "cuda where there is none" and torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    flags, words = BAD_FLAGS[case]
    refused(call(make_job(), *flags), words, tmp_path)


def test_job_folder_that_is_not_there(call, tmp_path):
    refused(call(tmp_path / "nowhere"), ["nowhere"], tmp_path)


def refused(outcome, words, tmp_path):
    code, result, errors = outcome
    assert (code, result["status"], result["video_path"]) == (1, "failed", None)
    for word in words:
        assert word in result["error"]
    assert "Traceback" not in errors
    assert not (tmp_path / "data/videos").exists()


def test_raw_job_is_preprocessed_first(make_raw_job, call, tmp_path):
    code, result, errors = call(make_raw_job())
    assert (code, result["error"]) == (0, None), errors
    assert (tmp_path / "data/clips/job/src_pose.mp4").is_file()
    assert result["frames"] == 6


def test_no_person_in_a_raw_job(make_raw_job, call, tmp_path):
    refused(call(make_raw_job(confidence=0.0)), ["driving.mp4", "person"], tmp_path)


def test_it_waits_for_a_free_gpu(tmp_path, monkeypatch, capsys):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 0, GPU-one\necho 1, GPU-two\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("WAN_GPUS_LEASE_FOLDER", str(tmp_path / "leases"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with leases.queued(tmp_path / "leases", ["GPU-one", "GPU-two"], "a run") as place:
        first, second = place.lock(1), place.lock(1)
    threading.Timer(1, second.close).start()
    with infer.TerminalReporter() as reporter, infer.leased_gpus(World(), None, reporter):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-two"
    first.close()
    assert "Waits for 1 of GPU-one, GPU-two: GPU-one is held by a run, since" in capsys.readouterr().err
