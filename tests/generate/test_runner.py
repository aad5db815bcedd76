import json
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime

import numpy as np
import pytest
import recorder
import torch
from media import moving_frames, sine, without_decoder, write_video

from wan_orchestration.engine.memory.placement import Placement
from wan_orchestration.engine.models import Models
from wan_orchestration.engine.parallel.ranks import Ranks
from wan_orchestration.families.animate.animator import Animator
from wan_orchestration.families.animate.family import enough_frames
from wan_orchestration.generate import fallback, resume, runner
from wan_orchestration.generate.fingerprint import fingerprints
from wan_orchestration.generate.resume import UnfinishedVideo
from wan_orchestration.generate.segments import Plan
from wan_orchestration.jobs.clips import check_clips
from wan_orchestration.protocol.messages import Request, Task
from wan_orchestration.settings.generate import GenerateSettings
from wan_orchestration.video.reader import FrameReader, probe
from wan_orchestration.weights.snapshot import open_snapshot

OUTPUTS = ["poster.jpg", "preview.webp", "result.json", "video.mp4"]


class Recorder(recorder.Recorder):
    def finished(self, result):
        super().finished(result)
        if result.video_path:
            output = result.video_path.parent
            assert (output / "result.json").is_file(), "it is written first"
            assert (output / ".work" / "state.json").is_file(), "a run that is killed here can be resumed"


@pytest.fixture
def make_task(make_job, tmp_path):
    def make(key="job", save_frames=None, settings=None, **job):
        folder = make_job(key, **job)
        values = {"clip_len": 5, "sampling_steps": 2, "mode": job.get("mode", "animate")} | (settings or {})
        return Task(
            job_id=key,
            clips=check_clips(folder, values["mode"]),
            output=tmp_path / "videos" / key,
            settings=GenerateSettings(**values),
            created_at=datetime.now(UTC),
            save_frames=save_frames,
        )

    return make


def run(snapshot, *tasks):
    recorder = Recorder()
    results = runner.run([(Request(snapshot=snapshot, tasks=list(tasks)), recorder)])
    assert recorder.results == results
    return results, recorder


def test_three_segments_become_a_video(tiny_snapshot, make_task, tmp_path):
    task = make_task(frames=11, save_frames=tmp_path / "exact.npz")
    [result], recorder = run(tiny_snapshot, task)
    assert (result.status, result.error, result.finite, result.segments) == ("succeeded", None, True, 3)
    assert (result.frames, result.fps, result.width, result.height) == (11, 30.0, 96, 64)
    assert min(result.seconds.load, result.seconds.encode, result.seconds.denoise, result.seconds.decode) > 0
    info = probe(task.output / "video.mp4")
    assert (info.frames, info.width, info.height, float(info.fps)) == (11, 96, 64, 30)
    assert sorted(path.name for path in task.output.iterdir()) == [
        "poster.jpg",
        "preview.webp",
        "result.json",
        "video.mp4",
    ]
    assert json.loads((task.output / "result.json").read_text())["status"] == "succeeded"
    steps = [(c, s) for c in (1, 2, 3) for s in (0, 1, 2)]
    assert list(dict.fromkeys((p.segment, p.step) for p in recorder.steps)) == [(0, 0), *steps]
    fractions = [p.fraction for p in recorder.steps]
    assert fractions == sorted(fractions) and len(set(fractions)) == len(fractions) and fractions[-1] == 1
    assert (recorder.steps[-1].eta_seconds, recorder.steps[-1].words) == (0, "the video is made")
    assert [(one.segment, one.segments, one.frames) for one in recorder.segments] == [(1, 3, 5), (2, 3, 4), (3, 3, 2)]
    exact = np.load(tmp_path / "exact.npz")["frames"]
    assert (exact.shape, exact.dtype) == ((3, 11, 64, 96), np.float32)
    with FrameReader(task.output / "video.mp4") as reader:
        shown = reader.read(range(11))
    luma = np.array([0.2126, 0.7152, 0.0722])
    assert np.abs((shown / 127.5 - 1) @ luma - exact.transpose(1, 2, 3, 0) @ luma).mean() < 0.05


@pytest.mark.parametrize(
    "settings, frames, segments",
    [
        ({"refert_num": 5, "clip_len": 9}, 14, 3),
        ({"sample_solver": "unipc", "sampling_steps": 3}, 5, 1),
        ({"guide_scale": 3.0}, 6, 2),
        ({"offload_model": False}, 2, 1),
        ({"dtype": "bfloat16"}, 5, 1),
        ({"use_relighting_lora": True}, 5, 1),
    ],
    ids=["refert_num 5", "unipc", "guidance", "2 frames", "bfloat16", "lora"],
)
def test_settings(tiny_snapshot, make_task, settings, frames, segments):
    task = make_task(frames=frames, settings=settings)
    [result], _ = run(tiny_snapshot, task)
    assert (result.error, result.segments, result.frames, result.finite) == (None, segments, frames, True)


def test_a_shorter_face_and_bad_sound_are_told_and_cost_nothing(tiny_snapshot, make_task):
    task = make_task(frames=8, face_frames=3, mode="replace")
    without_decoder(write_video(task.clips.folder / "src_pose.mp4", moving_frames(8, 64, 96), sound=sine(0.3)))
    task = task.model_copy(update={"clips": check_clips(task.clips.folder, "replace")})
    [result], recorder = run(tiny_snapshot, task)
    assert (result.error, result.frames, result.segments) == (None, 8, 2)
    face, sound = result.notices
    assert "src_face.mp4: 3 frames, but src_pose.mp4 has 8" in face and "src_pose.mp4: the sound has a codec" in sound
    assert recorder.lines[:2] == [f"job: {face}", f"job: {sound}"]
    assert json.loads((task.output / "result.json").read_text())["notices"] == [face, sound]
    assert not probe(task.output / "video.mp4").has_audio


def test_every_input_matters(tiny_snapshot, make_task, make_job, tmp_path):
    """Another prompt, seed, guidance, LoRA strength or reference gives other frames; the same gives the same.

    What of the LoRA has no place in the model is said of the job that uses it.
    """
    lora = tmp_path / "lora.ckpt"
    weights = torch.load(tiny_snapshot / "relighting_lora.ckpt", weights_only=True)["state_dict"]
    torch.save(weights | {"blocks.0.diff_m": torch.ones(1)}, lora)
    variants = {
        "base": {},
        "again": {},
        "seed": {"seed": 1},
        "prompt": {"prompt": "a dog"},
        "guided": {"guide_scale": 2.0},
        "negative": {"guide_scale": 2.0, "negative_prompt": "a dog"},
        "lora": {"lora": [f"{lora}:0.5"]},
    }
    tasks = [
        make_task(key, frames=5, settings=settings, save_frames=tmp_path / f"{key}.npz")
        for key, settings in variants.items()
    ]
    results, recorder = run(tiny_snapshot, *tasks)
    assert [result.error for result in results] == [None] * len(tasks)
    notices = {result.job_id: result.notices for result in results if result.notices}
    assert list(notices) == ["lora"] and "blocks.*.diff_m" in notices["lora"][0]
    assert [line for line in recorder.lines if "diff_m" in line] == [f"lora: {notices['lora'][0]}"]
    frames = {key: np.load(tmp_path / f"{key}.npz")["frames"] for key in variants}
    assert np.array_equal(frames["base"], frames["again"])
    for key, other in (
        ("seed", "base"),
        ("prompt", "base"),
        ("guided", "base"),
        ("negative", "guided"),
        ("lora", "base"),
    ):
        assert np.abs(frames[key] - frames[other]).max() > 1e-4, key


def test_a_failing_job_does_not_stop_the_next(tiny_snapshot, make_task):
    good, bad, last = (make_task(key) for key in ("good", "bad", "last"))
    (bad.clips.folder / "src_face.mp4").write_bytes(b"")
    results, _ = run(tiny_snapshot, good, bad, last)
    assert [result.status for result in results] == ["succeeded", "failed", "succeeded"]
    assert results[1].bad_input
    assert "src_face.mp4" in results[1].error
    assert not bad.output.exists()
    assert results[0].seconds.load > 0
    assert results[2].seconds.load == 0


def test_unwritable_output(tiny_snapshot, make_task, tmp_path):
    (tmp_path / "file").touch()
    task = make_task().model_copy(update={"output": tmp_path / "file" / "x"})
    [result], _ = run(tiny_snapshot, task)
    assert result.bad_input
    assert "cannot be written" in result.error


def test_output_in_use(tiny_snapshot, make_task, monkeypatch):
    monkeypatch.setattr(resume, "LOCK_SECONDS", 0.1)
    task = make_task()
    with UnfinishedVideo(task) as held:
        held.open("someone else's")
        [result], _ = run(tiny_snapshot, task)
    assert "another process" in result.error


def test_nan_is_reported(tiny_snapshot, make_task, monkeypatch):
    load = Models._load_vae

    def broken(self):
        vae = load(self)
        vae.decoder.conv_out.bias.fill_(float("nan"))
        return vae

    monkeypatch.setattr(Models, "_load_vae", broken)
    [result], _ = run(tiny_snapshot, make_task())
    assert (result.status, result.finite) == ("succeeded", False)


def test_out_of_memory_says_what_to_do(tiny_snapshot, make_task, monkeypatch):
    def full(self, *arguments):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    monkeypatch.setattr(Animator, "animate", full)
    [result], _ = run(tiny_snapshot, make_task())
    assert "20 GiB" in result.error
    assert "clip_len" in result.error
    assert not result.bad_input


def test_out_of_memory_goes_on_with_the_next_placement(tiny_snapshot, make_task, monkeypatch):
    animate = Animator.animate

    def too_large(self, *arguments):
        if self.models.placement == "resident":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
        return animate(self, *arguments)

    monkeypatch.setattr(Animator, "animate", too_large)
    ways = [Placement("resident", 2, 1), Placement("swap", 1, 1)]
    monkeypatch.setattr(fallback, "placements_for", lambda *arguments: ways)
    [result], recorder = run(tiny_snapshot, make_task())
    assert (result.error, result.placement, result.attention, result.compiled) == (None, "swap", "native", False)
    assert any("out of memory with placement resident; trying swap" in line for line in recorder.lines)


TALL = {"frames": 9, "height": 272, "width": 16}
"""Two segments, each of two bands where it is tiled."""


@pytest.fixture
def stop_second_segment(monkeypatch):
    """Has the second segment fail once, by an error, where the models lie so."""

    def stop(error, placement, ways):
        def animate(self, *arguments, whole=Animator.animate):
            video = whole(self, *arguments)
            calls.append(self.models.placement)
            if len(calls) == 2 and placement == self.models.placement:
                raise error
            return video

        calls = []
        monkeypatch.setattr(Animator, "animate", animate)
        monkeypatch.setattr(fallback, "placements_for", lambda *arguments: [Placement(name) for name in ways])

    return stop


FULL = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")


def test_no_seams_begin_in_the_middle_of_a_video(tiny_snapshot, make_task, stop_second_segment, monkeypatch):
    settings = {"color_match": "lab", "sampling_steps": 1}
    tiled = make_task("tiled", settings={**settings, "placement": "tiled"}, **TALL)
    assert run(tiny_snapshot, tiled)[0][0].error is None
    with_seams = (tiled.output / "video.mp4").read_bytes()

    task = make_task("anew", settings=settings, **TALL)
    stop_second_segment(FULL, "offload", ["offload", "tiled"])
    [result], recorder = run(tiny_snapshot, task)
    assert (result.error, result.placement, result.resumed_segments) == (None, "tiled", 0)
    assert [segment.placement for segment in result.made_segments] == ["tiled", "tiled"]
    assert "seams would begin after segment 1 of 2" in result.restarted
    assert any(result.restarted in line for line in recorder.lines)
    assert (task.output / "video.mp4").read_bytes() == with_seams

    task = make_task("kept", settings={**settings, "tiled_fallback": "fail"}, **TALL)
    stop_second_segment(FULL, "offload", ["offload", "tiled"])
    [result], _ = run(tiny_snapshot, task)
    assert (result.status, result.bad_input) == ("failed", False)
    assert "tiled_fallback: restart" in result.error
    monkeypatch.undo()
    [result], _ = run(tiny_snapshot, task)
    assert (result.error, result.placement, result.resumed_segments, result.restarted) == (None, "resident", 1, None)
    assert [segment.placement for segment in result.made_segments] == ["offload", "resident"]
    assert (task.output / "video.mp4").read_bytes() != with_seams


def test_a_video_begun_with_seams_resumes_with_them(tiny_snapshot, make_task, stop_second_segment, monkeypatch):
    """Also where there is memory for more by then."""
    task = make_task(settings={"sampling_steps": 1}, **TALL)
    stop_second_segment(RuntimeError("stopped"), "tiled", ["tiled"])
    assert run(tiny_snapshot, task)[0][0].error == "RuntimeError: stopped"
    monkeypatch.undo()
    [result], _ = run(tiny_snapshot, task)
    assert (result.error, result.resumed_segments) == (None, 1)
    assert [segment.placement for segment in result.made_segments] == ["tiled", "tiled"]


def test_seams_are_part_of_a_videos_fingerprint(tiny_snapshot, make_task):
    """As far as there may be some: not in small pictures, not with several ranks, nor where the job rules them out."""

    def found_for(task, ranks=1):
        return fingerprints(task, open_snapshot(tiny_snapshot), (), torch.device("cpu"), torch.float32, ranks)

    auto, small = make_task("auto", **TALL), make_task("small")
    tiled, swap = (
        auto.model_copy(update={"settings": auto.settings.model_copy(update={"placement": name})})
        for name in ("tiled", "swap")
    )
    found = found_for(auto)
    assert found[True] != found[False]
    assert found_for(tiled) == {True: found[True]}
    assert found_for(swap) == found_for(auto, ranks=2) == {False: found[False]}
    assert list(found_for(small)) == [False]


@pytest.mark.parametrize(
    "settings, first, seams, names",
    [
        ({}, 0, False, ["tiled"]),
        ({}, 1, True, ["tiled"]),
        ({}, 1, False, ["offload", "tiled"]),
        ({"placement": "swap"}, 1, False, ["swap"]),
    ],
)
def test_ways_to_go_on(settings, first, seams, names, tiny_snapshot, make_task, monkeypatch):
    """On a card that only tiled is expected to fit."""
    estimate = [Placement("resident", 9), Placement("swap", 9), Placement("offload", 9), Placement("tiled", 1)]
    monkeypatch.setattr(fallback, "pick_device", lambda settings, ranks: (torch.device("cuda", 0), torch.bfloat16))
    monkeypatch.setattr(fallback, "device_memory", lambda device: 5)
    monkeypatch.setattr(fallback, "all_placements", lambda *arguments, **options: estimate)
    task = make_task(settings=settings, **TALL)
    plan = Plan(open_snapshot(tiny_snapshot), task, (), first, count=2)
    assert [way.name for way in fallback.placements_for(plan, Ranks(), False, seams)] == names


def test_a_trimmed_last_segment(tiny_snapshot, make_task, tmp_path):
    """Of a second segment of nine frames the video needs two."""
    tasks = [
        make_task(key, frames=10, settings={"clip_len": 9, **settings}, save_frames=tmp_path / f"{key}.npz")
        for key, settings in {"whole": {}, "trimmed": {"trim_last_clip": True}}.items()
    ]
    results, _ = run(tiny_snapshot, *tasks)
    assert [(result.error, result.frames, result.segments) for result in results] == [(None, 10, 2)] * 2
    whole, trimmed = (np.load(tmp_path / f"{key}.npz")["frames"] for key in ("whole", "trimmed"))
    assert np.array_equal(whole[:, :9], trimmed[:, :9])
    assert not np.array_equal(whole[:, 9:], trimmed[:, 9:])
    assert [enough_frames(wanted) for wanted in (1, 2, 5, 6, 9, 10, 77)] == [5, 5, 5, 9, 9, 13, 77]


INFER = [sys.executable, "-m", "wan_orchestration.infer", "--clip-len=5", "--sampling-steps=2"]


def test_killed_job_resumes_bit_for_bit(tiny_snapshot, make_task, tmp_path):
    whole = make_task("whole", frames=13, save_frames=tmp_path / "whole.npz")
    output = tmp_path / "killed"
    command = [*INFER, f"--src-root={whole.clips.folder}", f"--checkpoint-dir={tiny_snapshot}"]
    command += [f"--output={output}", f"--save-frames={tmp_path / 'killed.npz'}"]

    victim = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    state = output / ".work" / "state.json"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not state.exists():
        assert victim.poll() is None
        time.sleep(0.02)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    done = len(json.loads(state.read_text())["clips"])
    assert 1 <= done < 3
    assert not (output / "video.mp4").exists()

    resumed = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    [result], _ = run(tiny_snapshot, whole)
    assert (resumed["resumed_clips"], result.resumed_segments) == (done, 0)
    exact = [np.load(tmp_path / f"{name}.npz")["frames"] for name in ("killed", "whole")]
    assert np.array_equal(*exact)
    assert (output / "video.mp4").read_bytes() == (whole.output / "video.mp4").read_bytes()
    assert sorted(path.name for path in output.iterdir()) == OUTPUTS


def test_other_settings_do_not_resume(tiny_snapshot, make_task, monkeypatch):
    task = make_task(frames=9)
    animate, calls = Animator.animate, []

    def crash_on_second(self, *arguments):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("crashed")
        return animate(self, *arguments)

    monkeypatch.setattr(Animator, "animate", crash_on_second)
    [result], recorder = run(tiny_snapshot, task)
    assert result.error == "RuntimeError: crashed"
    assert any("Traceback" in line for line in recorder.lines)
    assert len(json.loads((task.output / ".work/state.json").read_text())["clips"]) == 1
    other = task.model_copy(update={"settings": task.settings.model_copy(update={"seed": 7})})
    [result], _ = run(tiny_snapshot, other)
    assert (result.status, result.resumed_segments) == ("succeeded", 0)


def test_the_parts_of_the_time_add_up(tiny_snapshot, make_task, monkeypatch):
    """Of a first job, of one whose precision replaces its models, of one that fails, and of one that goes on."""
    animate, calls = Animator.animate, []

    def crash_on_third(self, *arguments):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("crashed")
        return animate(self, *arguments)

    monkeypatch.setattr(Animator, "animate", crash_on_third)
    tasks = make_task("first"), make_task("second", frames=9, settings={"dtype": "bfloat16"})
    for jobs in (tasks, tasks[1:]):
        started = time.perf_counter()
        results, recorder = run(tiny_snapshot, *jobs)
        took = time.perf_counter() - started
        for result in results:
            *parts, total = result.seconds.model_dump().values()
            assert min(result.seconds.load, result.seconds.encode, result.seconds.denoise) > 0
            assert min(parts) >= 0 and abs(sum(parts) - total) < 0.02 * total
        assert abs(sum(result.seconds.total for result in results) - took) < 0.02 * took
    [resumed] = results
    assert (resumed.status, resumed.resumed_segments) == ("succeeded", 1)
    assert [p.segment for p in recorder.steps][-1] == 2 and len(resumed.made_segments) == 2
    first, second = resumed.made_segments
    assert first.seconds_per_step > 0 and resumed.seconds.denoise == pytest.approx(second.seconds_per_step * 2)
    assert recorder.steps[0].fraction > 0.02, "an earlier run has made half of it"


@pytest.mark.parametrize("frames, refert, segments", [(2, 1, 1), (5, 1, 1), (6, 1, 2), (9, 1, 2), (10, 1, 3)])
def test_segment_count(frames, refert, segments):
    assert GenerateSettings(clip_len=5, refert_num=refert).segments(frames) == segments


def test_segments_match_the_first_ones_colours_also_after_a_break(tiny_snapshot, make_task, monkeypatch):
    whole = make_task("whole", frames=11, settings={"color_match": "lab"})
    broken = make_task("broken", frames=11, settings={"color_match": "lab"})
    run(tiny_snapshot, whole)
    finish, finished = UnfinishedVideo.finish_segment, []

    def stop_after_one(self, *arguments):
        if finished:
            raise RuntimeError("stopped")
        finished.append(finish(self, *arguments))

    monkeypatch.setattr(UnfinishedVideo, "finish_segment", stop_after_one)
    run(tiny_snapshot, broken)
    monkeypatch.undo()
    [result], _ = run(tiny_snapshot, broken)
    assert result.resumed_segments == 1
    plain = make_task("plain", frames=11)
    run(tiny_snapshot, plain)
    assert (plain.output / "video.mp4").read_bytes() != (whole.output / "video.mp4").read_bytes()
    assert (broken.output / "video.mp4").read_bytes() == (whole.output / "video.mp4").read_bytes()
