"""`result.json` files of earlier versions: they are read, and keep what they say when they are written again."""

import json
from typing import Any

import pytest

from wan_orchestration.protocol.messages import Result

FIRST: dict[str, Any] = {
    "kind": "result",
    "job_id": "dance",
    "status": "succeeded",
    "video_path": "/data/videos/dance/video.mp4",
    "created_at": "2026-11-24T10:00:00Z",
    "started_at": "2026-11-24T10:00:01Z",
    "finished_at": "2026-11-24T10:05:00Z",
    "frames": 11,
    "fps": 30.0,
    "width": 96,
    "height": 64,
    "clips": 3,
    "resumed_clips": 1,
    "finite": True,
    "seconds": {"load": 0.5, "encode": 1.25, "denoise": 0.4, "decode": 0.3, "total": 2.5},
    "peak_memory_bytes": 1181106176,
    "device": "cpu",
    "dtype": "float32",
    "settings": {
        "mode": "animate",
        "clip_len": 5,
        "refert_num": 1,
        "sampling_steps": 4,
        "shift": 5.0,
        "sample_solver": "dpm++",
        "guide_scale": 1.0,
        "prompt": "视频中的人在做动作",
        "negative_prompt": "静止",
        "seed": 42,
        "lora": [],
        "use_relighting_lora": False,
        "offload_model": True,
        "dtype": "float32",
        "device": "auto",
    },
    "snapshot": {"path": "/models/wan", "layout": "original", "revision": None},
    "error": None,
    "bad_input": False,
}
"""All keys of the first version, 24 November 2026."""

PLACED: dict[str, Any] = FIRST | {
    "attention": "native",
    "compiled": True,
    "placement": "resident",
    "made_clips": [
        {"frames": 5, "seconds": 25.6, "seconds_per_step": 0.03},
        {"frames": 4, "seconds": 0.6, "seconds_per_step": 0.04},
        {"frames": 2, "seconds": 0.7, "seconds_per_step": 0.03},
    ],
    "quality": {"frozen_frames": 0, "colour_drift": [0.0, 4.181, 6.734], "seam": 0.933, "seam_frame": 9},
    "settings": FIRST["settings"]
    | {"cfg_parallel": False, "attention": "sage", "compile": "on", "placement": "swap", "preset": "draft"},
}
"""25 November 2026: clips by themselves, without their placement, and the quality."""

TIMED: dict[str, Any] = PLACED | {
    "seconds": PLACED["seconds"] | {"compile": 24.9},
    "quality": PLACED["quality"] | {"identity": 0.82, "not_measured": {"pose_similarity": "no keypoints"}},
    "tf32": False,
    "compile_error": "no compiler",
    "may_pass": False,
    "settings": PLACED["settings"]
    | {"quantization": "off", "vae_dtype": "float32", "color_match": "lab", "tf32": True},
}
"""27 November 2026, before notices, restarts and the time to finish."""

FAILED = {
    "job_id": "dance",
    "status": "failed",
    "created_at": "2026-11-24T10:00:00Z",
    "error": "src_pose.mp4 is missing",
    "bad_input": True,
}


def written_again(content: dict[str, Any]) -> dict[str, Any]:
    return json.loads(Result.model_validate_json(json.dumps(content)).model_dump_json())


def differences(old: object, new: object, path: str = "") -> list[str]:
    """Places where `new` lacks or changes what `old` says; what it adds does not count."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [found for key, value in old.items() for found in differences(value, new.get(key), f"{path}/{key}")]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [found for i, value in enumerate(old) for found in differences(value, new[i], f"{path}/{i}")]
    return [] if old == new else [f"{path}: {old!r} became {new!r}"]


@pytest.mark.parametrize("content", [FIRST, PLACED, TIMED, FAILED], ids=["first", "placed", "timed", "failed"])
def test_files_of_earlier_versions_keep_their_content(content):
    assert differences(content, written_again(content)) == []


def test_what_earlier_versions_did_not_note_is_unknown():
    first, placed = written_again(FIRST), written_again(PLACED)
    assert first["made_clips"] == first["notices"] == []
    assert first["quality"] is first["restarted"] is first["tf32"] is first["placement"] is None
    assert first["may_pass"] is False
    assert first["seconds"]["compile"] == first["seconds"]["finish"] == 0
    assert [clip["placement"] for clip in placed["made_clips"]] == [None, None, None]


def test_keys_that_this_version_does_not_know_are_ignored():
    known = written_again(TIMED)
    more = json.loads(json.dumps(TIMED)) | {"colour_space": "bt709"}
    more["seconds"]["upscale"] = 3.0
    more["quality"]["sharpness"] = 0.5
    more["made_clips"][0]["gpu"] = "0"
    assert written_again(more) == known
