"""Two drawn figures in one video, both replaced by the mini model: who is who is told by the colours of their limbs."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from mini import measure
from mini.group import two_figures
from mini.jobs import write_group
from wan_orchestration.generate.runner import run
from wan_orchestration.infer import TerminalReporter, make_clips
from wan_orchestration.jobs.clips import check_clips
from wan_orchestration.jobs.folder import Job
from wan_orchestration.protocol.messages import Request, Task
from wan_orchestration.settings.environment import environment
from wan_orchestration.video.reader import FrameReader

SNAPSHOT = Path(__file__).parents[2] / "data" / "models" / "wan-animate-mini"


def test_limbs_are_told_apart_by_colour():
    group = two_figures(7, 9, crossing=True)
    truth = np.stack([group.truth(t) for t in group.frames])
    drivers = np.stack([group.picture(t) for t in group.frames])
    assert measure.limbs_told_apart(truth, group, group.frames).mean() > 0.95
    assert measure.limbs_told_apart(drivers, group, group.frames).mean() < 0.3


@pytest.mark.heavy
def test_each_person_becomes_their_own_character_also_after_they_crossed(tmp_path, monkeypatch):
    monkeypatch.setenv("WAN_DATA_ROOT", str(tmp_path))
    environment.cache_clear()
    group = two_figures(7, 33, crossing=True)
    job = Job.open(write_group(tmp_path / "pair", group))
    with TerminalReporter() as reporter:
        clips = check_clips(make_clips(job, "animate", environment(), reporter), "replace")
        settings = job.generate_settings(clip_len=17, sampling_steps=6, device="cpu")
        task = Task(
            job_id="pair", clips=clips, output=tmp_path / "out", settings=settings, created_at=datetime.now(UTC)
        )
        [result] = run([(Request(snapshot=SNAPSHOT, tasks=[task]), reporter)])
    environment.cache_clear()
    assert result.error is None
    with FrameReader(result.video_path) as reader:
        made = reader.read(group.frames)
    for frames in (range(6), range(27, 33)):
        assert measure.limbs_told_apart(made, group, frames).mean() > 0.85
