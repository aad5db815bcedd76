"""Look first: a run makes the clips, the job is ready, a person makes the clips again or starts the video."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import numpy as np
import pytest
from api_server import JOBS
from dagster._core.definitions.reconstruct import ReconstructableRepository
from dagster._core.execution.api import execute_run
from figures import driving, picture_of, walk
from PIL import Image

from wan_orchestration.launch import torchrun
from wan_orchestration.settings.environment import environment
from wan_orchestration.video.writer import write_lossless

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", autouse=True)
def engine(project) -> Iterator[None]:
    """The mini weights, and workers that make videos in no time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WAN_CHECKPOINT_DIR", str(ROOT / "data" / "models" / "wan-animate-mini"))
        patch.setenv("PYTHONPATH", os.pathsep.join(map(str, (ROOT, ROOT / "tests"))))
        patch.setattr(torchrun, "WORKER", "fast_worker")
        environment.cache_clear()
        yield


@pytest.fixture
def execute(instance) -> Callable[[str], dg.DagsterRun]:
    """Executes a job's newest run, as the daemon does, but in this process."""

    def run(key: str) -> dg.DagsterRun:
        (queued,) = instance.get_runs(dg.RunsFilter(tags={"dagster/partition": key}), limit=1)
        instance.report_dagster_event(dg.DagsterEvent("PIPELINE_STARTING", queued.job_name), queued.run_id)
        code = ReconstructableRepository.for_module("wan_orchestration.definitions", "definitions")
        execute_run(code.get_reconstructable_job(queued.job_name), instance.get_run_by_id(queued.run_id), instance)
        return instance.get_run_by_id(queued.run_id)

    return run


def get(api, key: str, path: str = "") -> dict:
    answer = api.get(f"{JOBS}/{key}{path}")
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_from_the_clips_to_the_video(api, project, execute, instance, report_event):
    key, poses = "look", walk(8)
    folder = project / "data" / "jobs" / key
    driving(folder, poses, fps=2)
    Image.fromarray(picture_of(poses[0])).save(folder / "reference.png")
    (folder / "job.yaml").write_text("preprocess: {light_models: /not/for/clients}\n")
    preprocess = {"estimator": "file", "retarget": "off", "resolution_area": 65536}
    body = {"src_root_path": f"data/jobs/{key}", "review": True, "sampling_steps": 3, "preprocess": preprocess}
    assert api.post(JOBS, json=body).json()["settings"] == {"sampling_steps": 3, "preprocess": preprocess}
    assert api.get(f"{JOBS}/{key}/clips").status_code == 404
    assert api.post(f"{JOBS}/{key}/start").status_code == 409

    run = execute(key)
    assert (run.job_name, run.tags["wan/state"]) == ("make_clips", "ready")
    job = get(api, key)
    assert job["status"] == "ready" and job["finished_at"] and job["links"]["media"] is None
    assert job["links"]["start"] == f"{JOBS}/{key}/start"
    assert api.get(f"{JOBS}/{key}/events").text.count("event: job") == 1, "the stream ends"
    clips = api.get(job["links"]["clips"]).json()
    assert (clips["preview"], clips["frames"], clips["estimator"]) == (False, 8, "file")
    assert clips["settings"]["estimator"] == "file" and "light_models" not in clips["settings"]
    assert {check["name"]: check["passed"] for check in clips["checks"]}["skeleton"] is True
    assert clips["blocked"] is None and clips["estimate"]["seconds"] is None and "unknown" in clips["estimate"]["basis"]
    for name in ("pose", "face", "contact_sheet"):
        file = api.get(clips["links"][name], headers={"Range": "bytes=0-9"})
        assert (file.status_code, len(file.content)) == (206, 10), name
    assert clips["links"]["mask"] is None and api.get(f"{JOBS}/{key}/clips/mask").status_code == 404
    assert api.get(f"{JOBS}/{key}/clips/preprocess.json").status_code == 422

    again = api.post(f"{JOBS}/{key}/clips", json={"preprocess": {**preprocess, "end": 3.5}})
    assert again.status_code == 202, again.text
    assert again.json()["settings"] == {"sampling_steps": 3, "preprocess": {**preprocess, "end": 3.5}}
    assert api.post(f"{JOBS}/{key}/clips", json={"preprocess": {}}).status_code == 409
    execute(key)
    assert instance.get_run_by_id(run.run_id).tags["wan/state"] == "superseded"
    newer = get(api, key)
    assert newer["status"] == "ready" and newer["links"]["clips"] != job["links"]["clips"]
    assert get(api, key, "/clips")["frames"] == 7
    assert not (project / "data" / "clips-preview" / key).exists()

    api.post(f"{JOBS}/{key}/clips", json={"preprocess": {**preprocess, "person": "index:9"}})
    run = report_event(key, dg.DagsterEventType.RUN_FAILURE)
    instance.add_run_tags(run.run_id, {"dagster/will_retry": "false"})  # as the daemon does
    failed = get(api, key)
    assert failed["status"] == "failed" and failed["links"]["start"], "the clips before it can be used"
    pose = project / "data" / "clips" / key / "src_pose.mp4"
    times = pose.stat().st_atime_ns, pose.stat().st_mtime_ns
    os.utime(pose)
    assert get(api, key)["links"]["start"] is None, "other clips than those that were ready"
    os.utime(pose, ns=times)

    made_at = pose.stat().st_mtime_ns
    assert api.post(f"{JOBS}/{key}/start", json={"sampling_stepps": 2}).status_code == 422
    started = api.post(f"{JOBS}/{key}/start", json={"seed": 5})
    assert started.status_code == 202, started.text
    assert started.json()["settings"] == {"sampling_steps": 3, "seed": 5, "preprocess": {**preprocess, "end": 3.5}}
    assert api.post(f"{JOBS}/{key}/start", json={"seed": 6}).status_code == 409
    run = execute(key)
    done = get(api, key)
    assert (run.job_name, done["status"], done["video"]["frames"]) == ("make_videos", "succeeded", 7)
    result = json.loads((project / "data" / "videos" / key / "result.json").read_text())
    assert (result["settings"]["sampling_steps"], result["settings"]["seed"]) == (3, 5)
    assert pose.stat().st_mtime_ns == made_at, "the clips are used as they are"
    assert api.post(f"{JOBS}/{key}/start").status_code == 409
    assert [job["job_id"] for job in api.get(JOBS).json()["jobs"]] == [key], "listed once"

    again = api.post(f"{JOBS}/{key}/clips", json={"preprocess": preprocess}).json()
    assert (again["status"], again["links"]["media"]) == ("queued", done["links"]["media"]), "that of earlier clips"
    assert api.get(again["links"]["media"]).status_code == 200
    assert api.delete(f"{JOBS}/{key}").json()["links"]["start"]


@pytest.fixture
def ready(api, add_job, execute, project) -> Callable[..., str]:
    """A job of ready clips that waits for a look; returns its key."""

    def make(key: str, yaml: str = "review: true", black: bool = False) -> str:
        add_job(key, yaml)
        if black:
            write_lossless(project / "data/jobs" / key / "src_pose.mp4", [np.zeros((64, 64, 3), np.uint8)] * 5, 30)
        assert api.post(JOBS, json={"src_root_path": f"data/jobs/{key}"}).status_code == 202
        execute(key)
        assert get(api, key)["status"] == "ready"
        return key

    return make


def test_what_prevents_a_start(api, ready, project, clips):
    key = ready("blocked", "{review: true, checks: {block: [skeleton]}}", black=True)
    info = get(api, key, "/clips")
    assert info["look"] is None and info["settings"] is None and info["frames"] == 5
    assert [check["name"] for check in info["checks"] if check["blocks"]] == ["skeleton"]
    assert "skeleton" in info["blocked"]
    assert api.post(f"{JOBS}/{key}/clips", json={"preprocess": {"start": 1}}).status_code == 422, "ready clips"
    refused = api.post(f"{JOBS}/{key}/start")
    assert (refused.status_code, refused.json()["detail"]) == (409, info["blocked"])

    job_file = project / "data" / "jobs" / key / "src_pose.mp4"
    job_file.write_bytes((clips / "src_pose.mp4").read_bytes())
    refused = api.post(f"{JOBS}/{key}/start")
    assert refused.status_code == 409 and "changed" in refused.json()["detail"]


def test_links_are_not_followed(api, ready, project):
    key = ready("linked")
    sheet = project / "data" / "clips" / key / "contact_sheet.jpg"
    sheet.unlink(missing_ok=True)
    sheet.symlink_to(project / "workspace.yaml")
    assert get(api, key, "/clips")["links"]["contact_sheet"] is None
    assert api.get(f"{JOBS}/{key}/clips/contact_sheet").status_code == 404
    assert api.get(f"{JOBS}/{key}/clips/..%2F..%2Fworkspace.yaml").status_code in (404, 422)

    other = sheet.with_name("character_2")
    shutil.copytree(sheet.parent, other, ignore=shutil.ignore_patterns(sheet.name))
    pose = {number: f"{JOBS}/{key}/clips/pose?character={number}" for number in (2, 3, 9)}
    assert [api.get(path).status_code for path in pose.values()] == [200, 404, 422]
    other.rename(project / "outside")
    other.symlink_to(project / "outside")
    assert api.get(pose[2]).status_code == 404


def test_a_preview_is_shown_while_its_run_runs(api, ready, report_event, project):
    key = ready("peek")
    api.post(JOBS, json={"src_root_path": f"data/jobs/{key}"})
    report_event(key, dg.DagsterEventType.RUN_START)
    whole = get(api, key)["links"]["clips"]
    preview = project / "data" / "clips-preview" / key
    shutil.copytree(project / "data" / "clips" / key, preview, copy_function=shutil.copyfile)
    job = get(api, key)
    assert job["review"] and job["links"]["clips"] != whole and get(api, key, "/clips")["preview"]
    assert api.get(get(api, key, "/clips")["links"]["pose"]).status_code == 200
    report_event(key, dg.DagsterEventType.RUN_CANCELED)
    assert not get(api, key, "/clips")["preview"], "a preview that a killed run left behind"
    assert api.delete(f"{JOBS}/{key}", params={"purge": True}).status_code == 204
    assert not preview.exists() and not list((project / "data" / "playable").glob("peek*"))


def test_a_start_that_failed_can_be_repeated(api, ready, report_event):
    key = ready("retry")
    first = api.post(f"{JOBS}/{key}/start", json={"seed": 1}, headers={"idempotency-key": "retry-1"})
    again = api.post(f"{JOBS}/{key}/start", json={"seed": 1}, headers={"idempotency-key": "retry-1"})
    assert first.status_code == again.status_code == 202 and first.json()["run_id"] == again.json()["run_id"]
    report_event(key, dg.DagsterEventType.RUN_CANCELED)
    assert get(api, key)["links"]["start"]
    assert api.post(f"{JOBS}/{key}/start").json()["settings"] == {"seed": 1}


def test_long_settings_fit_into_indexed_tags(api, add_job, instance):
    key = add_job("long")
    body = {"src_root_path": f"data/jobs/{key}", "review": True, "prompt": "é" * 5000, "negative_prompt": "n" * 3000}
    job = api.post(JOBS, json=body).json()
    assert job["settings"] == {"prompt": body["prompt"], "negative_prompt": body["negative_prompt"]}
    tags = instance.get_run_by_id(job["run_id"]).tags
    assert max(len(value.encode()) for value in tags.values()) <= 2000
