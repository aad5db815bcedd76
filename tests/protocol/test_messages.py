"""JSON keys call a segment a clip: users, the API and files of version 0.1 do."""

import json
from datetime import UTC, datetime

from wan_orchestration.protocol.messages import Progress, Result, SegmentFacts


def test_result_json_keeps_its_keys(tmp_path):
    made = SegmentFacts(frames=5, seconds=2.0, seconds_per_step=0.5)
    result = Result(
        job_id="a",
        status="succeeded",
        created_at=datetime.now(UTC),
        segments=3,
        resumed_segments=1,
        made_segments=[made],
    )
    (tmp_path / "result.json").write_text(result.model_dump_json())
    written = json.loads((tmp_path / "result.json").read_text())
    assert (written["clips"], written["resumed_clips"]) == (3, 1)
    assert written["made_clips"] == [
        {"frames": 5, "seconds": 2.0, "seconds_per_step": 0.5, "placement": None, "takes": [], "character": None}
    ]
    assert Result.read(tmp_path / "result.json") == result

    (tmp_path / "result.json").write_text("{")
    assert Result.read(tmp_path / "result.json") is None
    assert Result.read(tmp_path / "missing.json") is None


def test_progress_keeps_its_keys():
    old = '{"kind": "progress", "job_id": "a", "phase": "denoising", "clip": 2, "clips": 5, "step": 1, "steps": 4}'
    progress = Progress.model_validate_json(old)
    assert progress.words == "segment 2 of 5, step 1 of 4"
    assert progress.model_dump(include={"segment", "segments"}) == {"clip": 2, "clips": 5}
