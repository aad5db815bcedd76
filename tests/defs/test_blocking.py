"""Checks that keep a job from generation."""

import json
from types import SimpleNamespace

import dagster as dg
import numpy as np
import pytest

from wan_orchestration.defs.clips.assets import preprocessed_clips
from wan_orchestration.defs.clips.checks import clips_checks_definitions, judge
from wan_orchestration.defs.resources import JobFolders
from wan_orchestration.defs.videos import assets
from wan_orchestration.jobs.clips import check_clips
from wan_orchestration.launch.launcher import Launcher
from wan_orchestration.protocol.messages import Request
from wan_orchestration.quality.clips_quality import ClipsQuality, quality_of, why_blocked
from wan_orchestration.settings.checks import CheckSettings
from wan_orchestration.video.writer import write_lossless

FACE = (
    "src_face.mp4 shows a face in 20 % of the frames, expected 80 %: give other clips, "
    "or do not let face block (checks.block, WAN_CHECK_BLOCK)"
)


@pytest.fixture
def faceless(make_job):
    """Ready clips of which one frame in five has a face."""

    def make(key: str, yaml: str | None = None):
        folder = make_job(key, yaml=yaml)
        face = np.zeros((512, 512, 3), np.uint8)
        face[:, 200:] = 200
        write_lossless(folder / "src_face.mp4", [face, *[face * 0] * 4], 30)
        return folder

    return make


class NoLauncher(Launcher):
    """Fails what it is asked."""

    def generate(self, context, request: Request):
        context.log.info(f"launched {[task.job_id for task in request.tasks]}")
        raise dg.Failure("launched", allow_retries=False)
        yield

    def preprocess(self, context, request):
        raise AssertionError(request)


@pytest.fixture
def generate(data_root, instance, monkeypatch):
    """Generates the videos of jobs in one run that can launch nothing. Returns the failure and the launched jobs."""
    weights = SimpleNamespace(path=data_root, revision=None, fingerprint="weights", variant="only")
    monkeypatch.setattr(assets.Snapshots, "of", lambda self, model, variant: weights)

    def run(first: str, last: str) -> tuple[str, list[str]]:
        result = dg.materialize(
            [assets.generated_video],
            instance=instance,
            resources={"job_folders": JobFolders(), "launcher": NoLauncher()},
            tags={"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last},
            raise_on_error=False,
        )
        (failed,) = [event for event in result.all_events if event.is_step_failure]
        lines = [entry.user_message for entry in instance.all_logs(result.run_id)]
        return failed.step_failure_data.user_failure_data.description or "", [
            line for line in lines if line.startswith("launched")
        ]

    return run


def test_a_blocked_job_is_not_launched_and_others_are(faceless, make_job, instance, generate, data_root):
    faceless("a", yaml="checks: {block: [face]}")
    make_job("b")
    instance.add_dynamic_partitions("jobs", ["a", "b"])
    told, launched = generate("a", "b")
    assert told == "launched" and launched == ["launched ['b']"]
    for _ in range(2):
        told, launched = generate("a", "a")
        assert (told, launched) == (FACE, []), "also with the clips of an earlier run"
    (data_root / "jobs" / "a" / "job.yaml").write_text("checks: {block: [face], face: 0.2}")
    assert generate("a", "a") == ("launched", ["launched ['a']"])


def test_dagster_blocks_by_the_environment(faceless, instance, data_root, monkeypatch):
    """A failed check of WAN_CHECK_BLOCK skips what needs the clips in the same run, unless job.yaml says otherwise."""
    monkeypatch.setenv("WAN_CHECK_BLOCK", '["face"]')
    faceless("a")
    faceless("b", yaml="checks: {block: []}")
    instance.add_dynamic_partitions("jobs", ["a", "b"])
    [checks] = list(clips_checks_definitions().asset_checks or [])
    blocking = {spec.name for spec in checks.check_specs if spec.blocking}
    assert blocking == {"face"}

    @dg.asset(deps=[preprocessed_clips], partitions_def=preprocessed_clips.partitions_def)
    def video(context: dg.AssetExecutionContext): ...

    made, told = {}, {}
    for key in "ab":
        result = dg.materialize(
            [preprocessed_clips, checks, video],
            instance=instance,
            resources={"job_folders": JobFolders(), "launcher": NoLauncher()},
            partition_key=key,
            raise_on_error=False,
        )
        made[key] = [event.asset_key.path[-1] for event in result.get_asset_materialization_events()]
        told[key] = [
            event.step_failure_data.user_failure_data.description
            for event in result.all_events
            if event.is_step_failure
        ]
        face = next(each for each in result.get_asset_check_evaluations() if each.check_name == "face")
        assert not face.passed and face.severity.value == {"a": "ERROR", "b": "WARN"}[key]
    assert made == {"a": ["preprocessed_clips"], "b": ["preprocessed_clips", "video"]}
    assert told == {"a": [FACE], "b": []}


def test_measures_are_kept_until_a_clip_changes(faceless):
    folder = faceless("a")
    assert ClipsQuality.read(folder) is None
    measured = quality_of(check_clips(folder, "animate"))
    assert measured.face == 0.2 and ClipsQuality.read(folder) == measured
    altered = json.loads((folder / "measures.json").read_text()) | {"face": 0.5}
    (folder / "measures.json").write_text(json.dumps(altered))
    assert quality_of(check_clips(folder, "animate")).face == 0.5, "the clips are not decoded again"
    write_lossless(folder / "src_face.mp4", [np.zeros((512, 512, 3), np.uint8)] * 5, 30)
    assert ClipsQuality.read(folder) is None
    assert quality_of(check_clips(folder, "animate")).face == 0


def test_the_line_says_what_to_change():
    measured = ClipsQuality(
        stamps={},
        frames={},
        fps=30,
        width=64,
        height=64,
        skeleton=0.5,
        face=0.123,
        largest_jump=0.4,
        jump_frame=7,
        empty_masks=0.25,
        confidence=None,
    )
    assert why_blocked(measured, CheckSettings(), ready_clips=False) is None
    assert why_blocked(measured, CheckSettings(block=["face"]), ready_clips=False) == (
        "src_face.mp4 shows a face in 12.3 % of the frames, expected 80 %: choose another part of the video "
        "(preprocess.start, end) or another person (preprocess.person), "
        "or do not let face block (checks.block, WAN_CHECK_BLOCK)"
    )
    line = why_blocked(measured, CheckSettings(block=["skeleton", "mask", "no_jumps"]), ready_clips=False)
    assert line and "\n" not in line
    for part in (
        "in 50 %",
        "in 25 %",
        "by 0.4 ",
        "before frame 7",
        "mask_hints",
        "do not let skeleton and mask and no_jumps block",
    ):
        assert part in line
    assert why_blocked(measured, CheckSettings(block=["face"], face=0.1), ready_clips=False) is None


def test_a_check_that_blocks_is_shown_as_failed():
    for face in (0.79996, 0.8):
        measured = ClipsQuality(
            stamps={},
            frames={"src_pose.mp4": 5},
            fps=30,
            width=64,
            height=64,
            skeleton=1,
            face=face,
            largest_jump=0,
            jump_frame=None,
            empty_masks=None,
            confidence=None,
        )
        blocked = why_blocked(measured, CheckSettings(block=["face"]), ready_clips=True)
        assert judge(measured, CheckSettings())["face"].passed == (blocked is None)
