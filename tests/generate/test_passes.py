"""A job with several characters: a pass for each, on top of the pass before."""

from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import pytest
from media import add_character, moving_frames
from PIL import Image
from recorder import Recorder

from wan_orchestration.families.animate.animator import Animator
from wan_orchestration.generate import runner
from wan_orchestration.jobs.clips import check_clips
from wan_orchestration.protocol.messages import Request, Task
from wan_orchestration.settings.generate import GenerateSettings
from wan_orchestration.video.reader import FrameReader, probe

SETTINGS = GenerateSettings(mode="replace", clip_len=5, sampling_steps=1)
"""A segment after the first has four new frames."""


@pytest.fixture
def make_task(make_job, tmp_path):
    return lambda frames: task_of(make_job(frames=frames, mode="replace"), frames, tmp_path / "video")


def task_of(folder, frames, output):
    """Two characters."""
    add_character(folder, frames)
    return Task(
        job_id="job",
        clips=check_clips(folder, "replace"),
        output=output,
        settings=SETTINGS,
        created_at=datetime.now(UTC),
    )


@dataclass
class Segments:
    made: list[list]
    fails: int = 0


@pytest.fixture
def segments(monkeypatch):
    """Inputs and frames of each segment as it is generated; segment number `fails`, if given, fails."""
    made = []

    def condition(self, segment, guide, stock=Animator.condition):
        made.append([segment])
        return stock(self, segment, guide)

    def animate(self, *arguments, stock=Animator.animate):
        if len(made) == segments.fails:
            raise RuntimeError("stopped")
        made[-1].append(stock(self, *arguments))
        return made[-1][1]

    segments = Segments(made)
    monkeypatch.setattr(Animator, "condition", condition)
    monkeypatch.setattr(Animator, "animate", animate)
    return segments


def run(snapshot, task):
    recorder = Recorder()
    [result] = runner.run([(Request(snapshot=snapshot, tasks=[task]), recorder)])
    return result, recorder


def frames_of(path):
    with FrameReader(path) as reader:
        return reader.read(range(reader.info.frames))


def test_the_second_character_is_put_into_the_first_ones_video(tiny_snapshot, make_task, segments):
    task = make_task(9)
    task = task.model_copy(update={"save_frames": task.output.with_name("exact.npz")})
    result, recorder = run(tiny_snapshot, task)
    assert (result.error, result.segments, result.frames) == (None, 4, 9)
    assert [one.character for one in result.made_segments] == [1, 1, 2, 2]
    assert [(one.segment, one.segments) for one in recorder.segments] == [(n, 4) for n in (1, 2, 3, 4)]
    assert {(one.segment, one.segments) for one in recorder.steps} >= {(n, 4) for n in (1, 2, 3, 4)}
    fractions = [one.fraction for one in recorder.steps]
    assert fractions == sorted(fractions) and fractions[-1] == 1
    assert sorted(path.name for path in task.output.iterdir()) == [
        "poster.jpg", "preview.webp", "result.json", "video.mp4",
    ]  # fmt: skip
    assert probe(task.output / "video.mp4").frames == 9

    (first, video), (_, later), (second, after), (last, _) = segments.made
    before, rest = (
        ((each.permute(1, 2, 3, 0) + 1) * 127.5).round().numpy().astype(np.uint8) for each in (video, later)
    )
    known = second.mask[..., :1] == 0
    assert np.array_equal(second.background, before * known), "exactly the frames of the first pass"
    assert np.array_equal(last.background[1:], rest[1:] * known[1:])
    exact = np.load(task.save_frames)["frames"].transpose(1, 2, 3, 0)[:5]
    kept, generated = before[:, :, :50] / 127.5 - 1, after.permute(1, 2, 3, 0).numpy()[:, :, :50]
    assert np.abs(generated - kept).max() > 0.1, "the model changes the background"
    assert np.abs(exact[:, :, :50] - kept).max() < 1e-5, "but the video keeps it"
    assert np.array_equal(first.background, frames_of(task.clips.background.path)[:5])


def test_a_job_stopped_in_the_second_pass_keeps_the_first(tiny_snapshot, make_task, segments):
    task = make_task(5)
    whole, _ = run(tiny_snapshot, task.model_copy(update={"output": task.output.with_name("whole")}))

    def stop_and_resume(change=lambda: None):
        """The result, and how many segments the second run made."""
        for fails in (2, 0):
            segments.made.clear()
            segments.fails = fails
            result, _ = run(tiny_snapshot, task)
            if fails:
                assert result.error == "RuntimeError: stopped"
                change()
        return result, len(segments.made)

    def paint(folder):
        Image.fromarray(moving_frames(1, 80, 60, 17)[0]).save(folder / "src_ref.png")

    result, made = stop_and_resume()
    assert (result.error, result.resumed_segments, made) == (None, 1, 1)
    assert (task.output / "video.mp4").read_bytes() == whole.video_path.read_bytes()
    result, made = stop_and_resume(lambda: paint(task.clips.characters[0].folder))
    assert (result.error, result.resumed_segments, made) == (None, 1, 1), "the first pass does not depend on it"


def test_another_first_pass_makes_the_second_stale(tiny_snapshot, make_task, segments, monkeypatch):
    """Stopped between the passes, then once everything is generated."""
    task = make_task(5)
    request = Request(snapshot=tiny_snapshot, tasks=[task])
    assert runner.run([(request, Recorder())], lambda: [len(one) for one in segments.made] == [2]) == []
    assert sorted(path.name for path in (task.output / ".work").iterdir()) == ["character_1", "lock"]
    monkeypatch.setattr(runner, "join", lambda *arguments: 1 / 0)
    assert "ZeroDivisionError" in run(tiny_snapshot, task)[0].error
    monkeypatch.undo()
    Image.fromarray(moving_frames(1, 80, 60, 17)[0]).save(task.clips.reference)
    result, _ = run(tiny_snapshot, task)
    assert (result.error, result.resumed_segments) == (None, 0)
