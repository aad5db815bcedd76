"""What an interrupted run leaves in `.work`, as a later run finds it."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from tasks import make_task

from wan_orchestration.errors import BadInput
from wan_orchestration.generate import resume
from wan_orchestration.generate.resume import UnfinishedVideo
from wan_orchestration.protocol.messages import SegmentFacts
from wan_orchestration.settings.generate import GenerateSettings

FACTS = SegmentFacts(frames=5, seconds=3.0, seconds_per_step=0.5, placement="swap")


@pytest.fixture
def task(tmp_path):
    return make_task("a", Path("clips"), GenerateSettings(sampling_steps=4)).model_copy(
        update={"output": tmp_path / "out"}
    )


def finish(unfinished: UnfinishedVideo, finite: bool = True) -> None:
    frames, guide = np.zeros((5, 16, 16, 3), np.uint8), np.zeros((3, 1, 16, 16), np.float32)
    unfinished.finish_segment(FACTS, frames, guide, finite, colours=(1.0, 2.0))


def test_finished_segments_are_kept_under_their_fingerprint_only(task, monkeypatch):
    monkeypatch.setattr(resume, "LOCK_SECONDS", 0.1)
    with UnfinishedVideo(task) as unfinished:
        unfinished.open("one")
        finish(unfinished, finite=False)
        finish(unfinished)
        for character in (0, 1):
            with UnfinishedVideo(task, character) as other, pytest.raises(BadInput, match="another process"):
                other.open("one")
    with UnfinishedVideo(task) as resumed:
        resumed.open("other", "one")
        assert (resumed.segments, resumed.resumed, resumed.fingerprint) == ([FACTS] * 2, 2, "one")
        assert (resumed.finite, resumed.colours, len(resumed.files())) == (False, (1.0, 2.0), 2)
        assert all(file.is_file() for file in resumed.files()) and resumed.guide() is not None
    with UnfinishedVideo(task) as changed:
        changed.open("other")
        assert (changed.segments, changed.resumed, changed.finite) == ([], 0, True)
    assert not task.output.exists()


def test_who_waits_for_a_run_that_leaves_nothing_gets_a_new_folder(task):
    with ThreadPoolExecutor(1) as thread, UnfinishedVideo(task) as later:
        with UnfinishedVideo(task, character=1) as stopped, UnfinishedVideo(task, character=2) as second:
            stopped.open("one")
            second.open("two")
            opened = thread.submit(later.open, "one")
            time.sleep(0.1)
            assert not opened.done()
        opened.result()
        finish(later)
    assert sorted(path.name for path in (task.output / ".work").iterdir()) == [
        "clip_00000.mp4", "guide_00000.npy", "lock", "state.json",
    ]  # fmt: skip


def test_a_video_that_version_0_1_began_can_be_resumed(task):
    seconds = {"load": 5.0, "encode": 1.0, "compile": 0.0, "denoise": 2.0, "decode": 0.0, "finish": 0.0, "total": 8.0}
    old = {"frames": 5, "seconds": seconds, "finite": False, "colours": [1.0, 2.0], "placement": "swap"}
    folder = task.output / ".work"
    folder.mkdir(parents=True)
    (folder / "state.json").write_text(json.dumps({"identity": "one", "clips": [old], "restarted": "why"}))
    with UnfinishedVideo(task) as resumed:
        resumed.open("one")
        assert (resumed.segments, resumed.resumed, resumed.restarted) == ([FACTS], 1, "why")
        assert (resumed.finite, resumed.colours) == (False, (1.0, 2.0))
        finish(resumed)
        assert resumed.files()[1].name == "clip_00001.mp4"
    assert json.loads((folder / "state.json").read_text())["identity"] == "one"
