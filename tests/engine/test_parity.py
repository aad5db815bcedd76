"""The engine against recorded outputs of the published implementation, in float32, through `infer --save-frames`."""

import json
from pathlib import Path

import numpy as np
import pytest

from wan_orchestration import infer

PARITY = Path(__file__).parents[3] / "shared" / "parity"
pytestmark = pytest.mark.skipif(not PARITY.is_dir(), reason=f"the recorded outputs are not at {PARITY}")

CASES = ["a_animate_1clip", "b_animate_3clips_pad", "d_replace_2clips", "g_replace_relight_lora"]


@pytest.fixture(scope="module")
def snapshots(tmp_path_factory, diffusers_snapshot):
    """Both layouts; the LoRA of the original one goes along."""
    source, target = PARITY / "snapshot", tmp_path_factory.mktemp("parity") / "diffusers"
    diffusers_snapshot(source, target)
    (target / "relighting_lora.ckpt").symlink_to(source / "relighting_lora.ckpt")
    return {"original": source, "diffusers": target}


@pytest.mark.parametrize("layout", ["original", "diffusers"])
@pytest.mark.parametrize("case", CASES)
def test_frames_agree(case, layout, snapshots, tmp_path, capsys):
    folder = PARITY / "cases" / case
    recorded = json.loads((folder / "params.json").read_text())
    params = recorded["params"]
    arguments = [f"--src-root={folder / 'job'}", f"--checkpoint-dir={snapshots[layout]}", "--dtype=float32"]
    arguments += [f"--output={tmp_path / 'out'}", f"--save-frames={tmp_path / 'frames.npz'}"]
    for name in ("clip_len", "refert_num", "shift", "sample_solver", "sampling_steps", "guide_scale", "seed"):
        arguments.append(f"--{name.replace('_', '-')}={params[name]}")
    arguments += ["--replace"] if params["replace_flag"] else []
    arguments += ["--use-relighting-lora"] if recorded.get("use_relighting_lora") else []

    code = infer.main(arguments)

    result = json.loads(capsys.readouterr().out)
    assert (code, result["error"]) == (0, None)
    frames = np.load(tmp_path / "frames.npz")["frames"]
    expected = np.load(folder / "output.npz")["frames"]
    assert frames.shape == expected.shape
    assert np.abs(frames - expected).max() < 1e-4
