"""Wan-Animate-2 against recorded outputs of public ports, in float32, through `infer --save-frames` on raw jobs."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from benchmarks import animate_2_layout
from wan_orchestration import infer
from wan_orchestration.engine import schedule
from wan_orchestration.families.animate_2 import animator, clips, family, transformer
from wan_orchestration.families.animate_2.animator import Animator
from wan_orchestration.families.animate_2.transformer import Animate2Transformer, InContextBranch

PARITY = Path(__file__).parents[3] / "shared" / "parity2"
pytestmark = pytest.mark.skipif(not PARITY.is_dir(), reason=f"the recorded outputs are not at {PARITY}")

A, B, C = "a_base_1seg", "b_base_3seg_partial", "c_distill_2seg_portrait"
VARIANTS = {"base": "base", "distill": "distilled"}
"""By the recorded name of the model."""
FLAGS = ("clip_len", "sampling_steps", "shift", "guide_scale", "seed", "prompt", "prompt_ref", "negative_prompt")


@pytest.fixture
def error(tmp_path, capsys, monkeypatch):
    """Runs a case. Returns how far its frames are from the recorded ones, the largest absolute difference."""

    def run(case, snapshot=PARITY / "snapshot", *flags):
        recorded = json.loads((PARITY / "cases" / case / "params.json").read_text())
        monkeypatch.setenv("WAN_DATA_ROOT", str(tmp_path / "data"))
        monkeypatch.setenv("WAN_CACHE_ROOT", str(tmp_path / "cache"))
        monkeypatch.setenv("WAN_PREPROCESS_RESOLUTION_AREA", str(recorded["width"] * recorded["height"]))
        monkeypatch.setenv("WAN_PREPROCESS_LIGHT_MODELS", str(tmp_path))  # without files: nobody is looked for
        job = tmp_path / "job"
        job.mkdir()
        (job / "driving.mp4").symlink_to(PARITY / "cases" / case / "job/driving.mp4")
        (job / "reference.png").symlink_to(PARITY / "cases" / case / "job/picture.png")
        arguments = [f"--src-root={job}", f"--checkpoint-dir={snapshot}", "--device=cpu", "--dtype=float32"]
        arguments += [f"--save-frames={tmp_path / 'frames.npz'}", f"--variant={VARIANTS[recorded['model']]}"]
        arguments += [f"--{name.replace('_', '-')}={recorded[name]}" for name in FLAGS]
        code = infer.main([*arguments, *flags])
        result = json.loads(capsys.readouterr().out)
        assert (code, result["error"]) == (0, None)
        frames = np.load(tmp_path / "frames.npz")["frames"]
        expected = np.load(PARITY / "cases" / case / "output.npz")["frames"]
        assert frames.shape == expected.shape
        return np.abs(frames - expected).max()

    return run


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory):
    """A function that gives the snapshot in a layout, with the variant that a case needs."""

    def give(layout, case):
        if layout == "original":
            return PARITY / "snapshot"
        recorded = json.loads((PARITY / "cases" / case / "params.json").read_text())
        folder = tmp_path_factory.mktemp("parity2") / "diffusers"
        return animate_2_layout.write(PARITY / "snapshot", folder, VARIANTS[recorded["model"]])

    return give


@pytest.mark.parametrize(
    "case, layout",
    [
        (B, "original"),
        (C, "diffusers"),
        pytest.param(A, "original", marks=pytest.mark.heavy),
        pytest.param(A, "diffusers", marks=pytest.mark.heavy),
        pytest.param(B, "diffusers", marks=pytest.mark.heavy),
        pytest.param(C, "original", marks=pytest.mark.heavy),
    ],
)
def test_frames_agree(case, layout, error, snapshot):
    assert error(case, snapshot(layout, case)) < 1e-4


class OtherTorch:
    """PyTorch for one module, with other functions of these names."""

    def __init__(self, **functions):
        self.__dict__.update(functions)

    def __getattr__(self, name):
        return getattr(torch, name)


def skipped_in_both(patch):
    def branch(context, name, skips=frozenset()):
        return InContextBranch(context, name, frozenset() if name == "driving" else frozenset({9}))

    patch.setattr(animator, "InContextBranch", branch)


def features_of_the_first_frame(patch, encode=Animator._encode_picture):
    made = []

    def encode_once(self, picture):
        if len(made) < 2:  # the picture's, and the first segment's
            made.append(encode(self, picture))
        return made[-1]

    patch.setattr(Animator, "_encode_picture", encode_once)


def carry_in_8_bits(patch, encode=Animator._encode_known):
    def encode_rounded(self, frames, guide):
        return encode(self, frames, None if guide is None else ((guide + 1) * 127.5).round() / 127.5 - 1)

    patch.setattr(Animator, "_encode_known", encode_rounded)


def no_width_offset(patch, read=Animate2Transformer.read_driving):
    patch.setattr(
        Animate2Transformer, "read_driving", lambda self, latents, branch, width: read(self, latents, branch, 0)
    )


def black_tail(patch, encode=Animator._encode_blank):
    def encode_black(self, video, guide):
        video[:, :, 0 if guide is None else 1 :] = -1
        return encode(self, video, guide)

    patch.setattr(Animator, "_encode_blank", encode_black)


def linear(patch, fit=clips.letterbox):
    patch.setattr(clips, "letterbox", lambda picture, size: fit(picture, size, cv2.INTER_LINEAR))


def sigmas_of_diffusers(patch, sigmas=schedule.sigmas):
    patch.setattr(schedule, "sigmas", lambda steps, shift, solver: sigmas(steps, shift, "unipc"))


def filled(frames, clip_len):
    return frames + (1 - frames) % (clip_len - 1)


MISTAKES = {
    "empty slots not attended": (B, ["--empty-slots=none"]),
    "no log_scale": (C, lambda patch: patch.setitem(family.LOG_SCALE, "distilled", 0.0)),
    "block 9 not skipped": (A, lambda patch: patch.setattr(animator, "UNCONDITIONAL_SKIPS", frozenset())),
    "block 9 skipped in both": (A, skipped_in_both),
    "CLIP features of frame 0": (B, features_of_the_first_frame),
    "carry in 8 bits": (C, carry_in_8_bits),
    "driving frames on the picture's canvas": (
        B,
        lambda patch: patch.setattr(clips, "canvas_size", lambda *_: (48, 32)),
    ),
    "last segment filled": (C, lambda patch: patch.setattr(family, "padded_frames", filled)),
    "driving mask 0": (C, lambda patch: patch.setattr(transformer, "torch", OtherTorch(ones_like=torch.zeros_like))),
    "driving pass at the first timestep": (C, lambda patch: patch.setattr(transformer, "DRIVING_TIMESTEP", 1000)),
    "width offset 0": (C, no_width_offset),
    "time offset 0": (C, lambda patch: patch.setattr(transformer, "TIME_OFFSET", 0)),
    "prompt for prompt_ref": (C, ["--prompt-ref=视频中的人在做动作， 背景静止"]),
    "tail of -1": (C, black_tail),
    "INTER_LINEAR": (B, linear),
    "Euler": (A, ["--sample-solver=euler"]),
    "sigmas of diffusers": (A, sigmas_of_diffusers),
}
"""Mistakes of ports, each with a case that shows it, and how to make it: flags, or a change of the code."""


@pytest.mark.heavy
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_shows(mistake, error, monkeypatch):
    case, how = MISTAKES[mistake]
    if callable(how):
        how(monkeypatch)
    found = error(case, PARITY / "snapshot", *([] if callable(how) else how))
    print(f"{mistake}: {found:.1e} in {case}")
    assert found > 1e-3
