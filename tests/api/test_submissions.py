"""Repeated and parallel requests start exactly one run."""

import json
import re
import shutil
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dagster as dg
import pytest
from api_server import JOBS, running
from media import moving_frames, sine, without_decoder, write_video

from wan_orchestration.api.queue import RunQueue
from wan_orchestration.defs.jobs.run_requests import already_run, in_progress
from wan_orchestration.defs.jobs.versions import JobVersion
from wan_orchestration.jobs.folder import Job
from wan_orchestration.settings.environment import environment
from wan_orchestration.settings.service import ApiSettings


@pytest.fixture
def post(api):
    def send(key: str, idempotency_key: str | None = None, **settings):
        headers = {"idempotency-key": idempotency_key} if idempotency_key else {}
        return api.post(JOBS, json={"src_root_path": f"data/jobs/{key}", **settings}, headers=headers)

    return send


@pytest.fixture
def runs(instance):
    return lambda key: instance.get_runs(dg.RunsFilter(tags={"dagster/partition": key}))


def test_a_run_is_like_the_webservers(post, add_job, runs, instance):
    key = add_job("one", "priority: 2")
    assert post(key, sampling_steps=3, mode="animate").status_code == 202
    (run,) = runs(key)
    assert run.status is dg.DagsterRunStatus.QUEUED
    assert run.run_config["ops"]["generated_video"]["config"] == {"sampling_steps": 3, "mode": "animate"}
    assert run.tags["dagster/priority"] == "2"
    assert run.remote_job_origin.repository_origin.code_location_origin.location_name == "wan_orchestration"
    assert key in instance.get_dynamic_partitions("jobs")
    # The drop_folder sensor starts no other run for it, neither before nor after its end.
    assert in_progress(instance, [key]) == {key}
    assert already_run(instance, [JobVersion.of(Job.open(Path("data/jobs") / key))]) == {key}


def test_a_repeated_request_is_the_same_job(post, add_job, runs, report_event):
    key = add_job("again")
    first, second = post(key, seed=1), post(key, seed=1)
    assert first.status_code == second.status_code == 202
    assert first.json()["run_id"] == second.json()["run_id"]
    other = post(key, seed=2)
    assert other.status_code == 409 and "cancel it first" in other.json()["detail"]
    report_event(key, dg.DagsterEventType.RUN_CANCELED)
    assert post(key, seed=2).json()["run_id"] != first.json()["run_id"]
    assert len(runs(key)) == 2


def test_a_run_that_others_started_is_the_same_job(post, add_job, runs, instance):
    key = add_job("dropped")
    RunQueue(instance, environment()).create(key, run_id := str(uuid.uuid4()), {}, {})
    assert post(key).json()["run_id"] == run_id
    assert post(key, seed=2).status_code == 409
    assert len(runs(key)) == 1


def test_an_idempotency_key_belongs_to_one_request(post, add_job, runs, report_event):
    key = add_job("keyed")
    first = post(key, "k-1", seed=1).json()
    report_event(key, dg.DagsterEventType.RUN_CANCELED)
    assert post(key, "k-1", seed=1).json()["run_id"] == first["run_id"], "even after its end"
    clash = post(key, "k-1", seed=2)
    assert clash.status_code == 422 and "Idempotency-Key" in clash.json()["detail"]
    assert len(runs(key)) == 1
    assert post(key, "k-2", seed=1).json()["run_id"] != first["run_id"]


def test_many_at_once_make_one_run(post, add_job, runs):
    key = add_job("crowd")
    barrier = threading.Barrier(8)

    def send(number: int) -> int:
        barrier.wait()
        return post(key, f"crowd-{number % 2}", seed=1).status_code

    with ThreadPoolExecutor(8) as pool:
        codes = set(pool.map(send, range(8)))
    assert codes == {202}
    assert len(runs(key)) == 1


@pytest.fixture
def upload(api, raw):
    def send(seed: int, picture: str = "Ada.png", video: str = "C:\\Dance!.mov", idempotency_key: str = "", **fields):
        files = {"reference": (picture, raw["reference"]), "driving": (video, raw["driving"])}
        headers = {"idempotency-key": idempotency_key} if idempotency_key else {}
        answer = api.post(JOBS, data={"seed": str(seed), **fields}, files=files, headers=headers)
        assert answer.status_code == 202, answer.text
        return answer.json()

    return send


def test_uploads_are_named_after_their_files(upload, project):
    (project / "data" / "videos" / "ada-dance").mkdir(parents=True)
    assert upload(1)["job_id"] == "ada-dance-2", "an output of another job exists"
    assert re.fullmatch(r"\d{8}-\d{6}", upload(2, "reference.png", "舞.mp4")["job_id"])


def test_parallel_uploads_of_one_name_are_separate_jobs(upload, runs):
    """Uploads with the same Idempotency-Key are one job, whatever their files are called."""
    barrier = threading.Barrier(4)

    def send(number: int) -> str:
        barrier.wait()
        return upload(number % 2, "Eve.png", idempotency_key=f"race-{number % 2}")["job_id"]

    with ThreadPoolExecutor(4) as pool:
        names = list(pool.map(send, range(4)))
    assert names[:2] == names[2:]
    assert sorted(names[:2]) == ["eve-dance", "eve-dance-2"]
    assert all(len(runs(name)) == 1 for name in names)
    assert upload(0, "Renamed.png", idempotency_key="race-0")["job_id"] == names[0]


def test_too_many_jobs_are_refused_for_now(project, add_job):
    add_job("late")
    with running(ApiSettings(max_queued=1)) as api:
        answer = api.post(JOBS, json={"src_root_path": "data/jobs/late"})
        assert answer.status_code == 429 and answer.headers["retry-after"] == "60"
        assert api.get(f"{JOBS}/late").status_code == 404


def test_what_a_killed_server_began_is_completed(instance, add_job, runs, api, project):
    queue = RunQueue(instance, environment())
    queue.create(add_job("begun"), "3e4b6f4c-0001-4000-8000-000000000001", {}, {})
    queue.create(add_job("lost"), "3e4b6f4c-0001-4000-8000-000000000002", {}, {})
    shutil.rmtree(project / "data" / "jobs" / "lost")
    assert api.get(f"{JOBS}/begun").json()["status"] == "queued"
    assert "begun" not in instance.get_dynamic_partitions("jobs")
    queue.recover()
    assert [run.status for run in runs("begun")] == [dg.DagsterRunStatus.QUEUED]
    assert not runs("lost")


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"sampling_stepps": 3}, "sampling_stepps"),
        ({"sampling_steps": 0}, "sampling_steps"),
        ({"clip_len": 6}, "4n+1"),
        ({"mode": "replace"}, "src_bg.mp4"),
        ({"preprocess": {"mode": "replace"}}, "preprocess.mode"),
        ({"preprocess": {"start": 1}}, "ready clips"),
        ({"webhook_url": "http://169.254.169.254/"}, "webhook_url"),
        ({"seed": float("nan")}, "finite"),
        ({"shift": "many"}, "shift"),
    ],
)
def test_errors_are_found_at_submission(api, add_job, instance, settings, words):
    if not Path("data/jobs/strict").exists():
        add_job("strict")
    body = {"src_root_path": "data/jobs/strict", **settings}
    answer = api.post(JOBS, content=json.dumps(body), headers={"content-type": "application/json"})
    assert answer.status_code == 422, answer.text
    assert words in answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert "strict" not in instance.get_dynamic_partitions("jobs")


def test_damaged_clips_are_refused(api, add_job, project):
    add_job("damaged")
    clip = project / "data" / "jobs" / "damaged" / "src_pose.mp4"
    clip.write_bytes(clip.read_bytes()[:900])
    answer = api.post(JOBS, json={"src_root_path": "data/jobs/damaged"})
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith("data/jobs/damaged/src_pose.mp4: ")


def test_bad_sound_is_no_reason_to_refuse(api, add_job, project):
    add_job("muffled")
    clip = project / "data" / "jobs" / "muffled" / "src_pose.mp4"
    without_decoder(write_video(clip, moving_frames(5, 64, 96), sound=sine(0.2)))
    assert api.post(JOBS, json={"src_root_path": "data/jobs/muffled"}).status_code == 202
