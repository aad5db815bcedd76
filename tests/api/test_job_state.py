"""A job's state comes from its run and its files."""

import av
import dagster as dg
import pytest
from api_server import JOBS
from dagster._core.events import StepMaterializationData

from wan_orchestration.definitions import definitions
from wan_orchestration.defs.jobs.run_requests import partition_tags
from wan_orchestration.protocol import progress
from wan_orchestration.protocol.messages import PreprocessProgress, Progress


def submit(api, key: str, **settings) -> dict:
    answer = api.post(JOBS, json={"src_root_path": f"data/jobs/{key}", **settings})
    assert answer.status_code == 202, answer.text
    return answer.json()


def get(api, key: str) -> dict:
    answer = api.get(f"{JOBS}/{key}")
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_from_the_queue_to_the_video(api, add_job, report_event, finish, project):
    key = add_job("dance")
    job = submit(api, key, sampling_steps=2, priority=3)
    assert (job["job_id"], job["status"], job["queue_position"], job["priority"]) == (key, "queued", 1, 3)
    assert job["settings"] == {"sampling_steps": 2}
    assert job["started_at"] is None and job["links"]["media"] is None
    assert api.get(f"{JOBS}/{key}/media").status_code == 409

    run = report_event(key, dg.DagsterEventType.RUN_START)
    job = get(api, key)
    assert (job["status"], job["progress"]["phase"]) == ("running", "preparing")
    folder = project / "data" / "progress"
    progress.write(folder, run.run_id, PreprocessProgress(job_id=key, phase="keypoints", done=30, total=120))
    at = get(api, key)["progress"]
    assert (at["words"], at["fraction"]) == ("finding the keypoints, frame 30 of 120", 0.13 / 4)
    progress.write(folder, run.run_id, PreprocessProgress(job_id=key, phase="clips", done=120, total=120))
    at = get(api, key)["progress"]
    assert at["words"] == "finishing the clips" and 0.18 <= at["fraction"] < 0.19, "it grows with time after that"
    step = Progress(job_id=key, phase="denoising", fraction=0.25, segment=2, segments=4, step=1, steps=2)
    step.eta_seconds = 9.5
    for update, words, done in (
        ({"phase": "starting", "fraction": None, "segment": 0, "segments": 0}, "starting the engine", 0.19),
        ({"phase": "loading", "fraction": 0.0, "segment": 0}, "loading the weights", 0.2),
        ({"phase": "encoding", "segment": 0}, "encoding the prompt and the picture", 0.395),
        ({"phase": "encoding"}, "encoding segment 2 of 4", 0.395),
        ({}, "segment 2 of 4, step 1 of 2", 0.395),
        ({"phase": "decoding"}, "decoding segment 2 of 4", 0.395),
        ({"phase": "finishing"}, "writing segment 2 of 4", 0.395),
        ({"phase": "finishing", "segment": 4, "fraction": 1.0}, "the video is made", 0.98),
    ):
        now = step.model_copy(update=update)
        progress.write(folder, run.run_id, now)
        at = get(api, key)["progress"]
        assert (at["phase"], at["words"], at["fraction"]) == (now.phase, words, pytest.approx(done, abs=0.003))
        assert (at["clip"] or 0, at["eta_seconds"]) == (now.segment, 9.5)
    progress.write(folder, "another run", step)
    assert get(api, key)["progress"]["phase"] == "preparing"

    made = finish(key)
    job = get(api, key)
    assert job["status"] == "succeeded" and job["finished_at"] and job["progress"] is None
    video = api.get(job["links"]["media"])
    assert video.headers["content-type"] == "video/mp4"
    assert video.content == (made / "video.mp4").read_bytes()
    assert api.get(job["links"]["poster"]).headers["content-type"] == "image/jpeg"
    assert job["links"]["preview"] is None and api.get(f"{JOBS}/{key}/preview").status_code == 404
    assert api.get(job["links"]["reference"]).headers["content-type"] == "image/png"


def test_a_lossless_clip_is_converted_for_browsers(api, project, tmp_path):
    clip = project / "data" / "jobs" / "dance" / "src_pose.mp4"
    for _ in range(2):
        (tmp_path / "driving.mp4").write_bytes(api.get(f"{JOBS}/dance/inputs/driving").content)
        with av.open(str(tmp_path / "driving.mp4")) as given, av.open(str(clip)) as lossless:
            assert given.streams.video[0].codec_context.pix_fmt == "yuv420p"
            assert given.streams.video[0].frames == lossless.streams.video[0].frames == 5


def test_a_video_can_be_read_in_ranges(api):
    path, whole = f"{JOBS}/dance/media", api.get(f"{JOBS}/dance/media")
    assert whole.headers["accept-ranges"] == "bytes"
    part = api.get(path, headers={"Range": "bytes=100-199"})
    assert part.status_code == 206 and part.content == whole.content[100:200]
    assert part.headers["content-range"] == f"bytes 100-199/{len(whole.content)}"
    assert api.get(path, headers={"Range": "bytes=-50"}).content == whole.content[-50:]
    assert api.get(path, headers={"Range": f"bytes={len(whole.content)}-"}).status_code == 416
    assert api.get(path, headers={"If-None-Match": whole.headers["etag"]}).status_code == 304
    head = api.head(path)
    assert head.status_code == 200 and not head.content
    assert head.headers["content-length"] == str(len(whole.content))


def test_the_reason_of_a_failure_has_no_paths(api, add_job, report_event, instance, project):
    key = add_job("broken")
    submit(api, key)
    run = report_event(key, dg.DagsterEventType.RUN_START)
    instance.report_run_failed(run, f"{project}/data/clips/broken/src_pose.mp4: see /usr/lib/python3/secret.py")
    job = get(api, key)
    # Dagster's daemon retries runs whose process died, so the job has not ended.
    assert job["status"] == "queued"
    instance.add_run_tags(run.run_id, {"dagster/will_retry": "false"})
    job = get(api, key)
    assert job["status"] == "failed"
    assert job["error"] == "data/clips/broken/src_pose.mp4: see …/secret.py"
    log = api.get(job["links"]["log"])
    assert log.headers["content-type"].startswith("text/plain")
    assert "data/clips/broken" in log.text and str(project) not in log.text


def test_jobs_are_listed_by_their_newest_runs(api, add_job, report_event):
    for key in ("list-a", "list-b"):
        submit(api, add_job(key))
    report_event("list-a", dg.DagsterEventType.RUN_CANCELED)
    submit(api, "list-a")
    first = api.get(JOBS, params={"limit": 1}).json()
    assert [job["job_id"] for job in first["jobs"]] == ["list-a"]
    second = api.get(first["next"]).json()
    assert [job["job_id"] for job in second["jobs"]] == ["list-b"]
    every = api.get(JOBS).json()
    assert [job["job_id"] for job in every["jobs"]] == ["list-a", "list-b", "broken", "dance"]
    assert every["next"] is None
    assert [job["job_id"] for job in api.get(JOBS, params={"status": "succeeded"}).json()["jobs"]] == ["dance"]
    # The more urgent run is first, then the older one.
    assert [get(api, key)["queue_position"] for key in ("list-b", "list-a")] == [1, 2]


def test_a_queued_job_is_cancelled_and_removed(api, add_job, project):
    submit(api, add_job("tired"))
    assert api.delete(f"{JOBS}/tired").json()["status"] == "cancelled"
    assert api.delete(f"{JOBS}/tired").json()["status"] == "cancelled"
    outputs = [project / "data" / place / "tired" for place in ("clips", "videos")]
    for folder in outputs:
        folder.mkdir(parents=True, exist_ok=True)
    assert api.delete(f"{JOBS}/tired", params={"purge": True}).status_code == 204
    assert not any(folder.exists() for folder in outputs)
    assert (project / "data" / "jobs" / "tired").is_dir(), "a folder that was not uploaded stays"
    assert api.get(f"{JOBS}/tired").status_code == 404
    assert submit(api, "tired")["status"] == "queued"
    api.delete(f"{JOBS}/tired")


def test_jobs_of_one_run_have_separate_states(api, add_job, instance, report_event):
    """The drop folder's sensor puts jobs that arrive together into one run."""
    keys = ["shared-a", "shared-b"]
    instance.add_dynamic_partitions("jobs", [add_job(key) for key in keys])
    repository = definitions().get_repository_def()
    run = instance.create_run_for_job(repository.get_job("make_videos"), tags=partition_tags(keys))
    assert [get(api, key)["status"] for key in keys] == ["queued", "queued"]
    start = dg.DagsterEvent(dg.DagsterEventType.RUN_START.value, run.job_name)
    instance.report_dagster_event(start, run.run_id)
    made = StepMaterializationData(dg.AssetMaterialization("generated_video", partition="shared-a"))
    event = dg.DagsterEvent(
        dg.DagsterEventType.ASSET_MATERIALIZATION.value,
        run.job_name,
        event_specific_data=made,
        step_key="generated_video",
    )
    instance.report_dagster_event(event, run.run_id)
    assert [get(api, key)["status"] for key in keys] == ["succeeded", "running"]
    refused = api.delete(f"{JOBS}/shared-b")
    assert refused.status_code == 409 and run.run_id in refused.json()["detail"]
    instance.report_run_failed(run)
    instance.add_run_tags(run.run_id, {"dagster/will_retry": "false"})
    assert [get(api, key)["status"] for key in keys] == ["succeeded", "failed"]
    assert api.delete(f"{JOBS}/shared-b").json()["status"] == "failed"
    assert {job["job_id"] for job in api.get(JOBS, params={"limit": 2}).json()["jobs"]} == set(keys)


@pytest.mark.parametrize("path", ["", "/media", "/poster", "/preview", "/log", "/events", "/inputs/driving"])
def test_unknown_jobs_are_not_found(api, path):
    answer = api.get(f"{JOBS}/nobody{path}")
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["status"] == 404 and "nobody" in answer.json()["detail"]
