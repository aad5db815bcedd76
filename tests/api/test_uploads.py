"""Files that are sent become a job folder, whole or not at all."""

import json

import dagster as dg
import pytest
import yaml
from api_server import JOBS
from media import moving_frames, write_video

from wan_orchestration.job import Job


def parts(**files: bytes) -> dict:
    return {name: ("../../evil.sh", content, "text/x-shellscript") for name, content in files.items()}


@pytest.fixture
def left(project):
    """Names in the jobs folder; hidden ones are what uploads leave behind."""
    return lambda: sorted(path.name for path in (project / "data" / "jobs").iterdir())


def test_a_picture_and_a_video_become_a_job(api, raw, project, instance, left):
    fields = {
        "name": "sent",
        "mode": "animate",
        "sampling_steps": "4",
        "refert_num": "5",
        "offload_model": "false",
        "prompt": "123",
        "preprocess": json.dumps({"start": 0.1}),
        "priority": "7",
    }
    answer = api.post(JOBS, data=fields, files=parts(**raw))
    assert answer.status_code == 202, answer.text
    job = answer.json()
    assert (job["job_id"], job["status"], job["priority"]) == ("sent", "queued", 7)
    folder = project / "data" / "jobs" / "sent"
    assert sorted(path.name for path in folder.iterdir()) == [
        ".uploaded", "driving.mp4", "job.yaml", "reference.png",
    ]  # fmt: skip
    assert (folder / "driving.mp4").read_bytes() == raw["driving"]
    assert yaml.safe_load((folder / "job.yaml").read_text()) == {
        "mode": "animate",
        "priority": 7,
        "preprocess": {"start": 0.1},
        "generate": {"sampling_steps": 4, "refert_num": 5, "offload_model": False, "prompt": "123"},
    }
    assert Job.open(folder).generate_settings().sampling_steps == 4
    assert job["settings"]["sampling_steps"] == 4
    assert api.get(job["links"]["driving"]).content == raw["driving"]
    assert left() == ["sent"]


def test_ready_clips_may_be_sent(api, clips):
    files = parts(**{name: next(clips.glob(f"{name}.*")).read_bytes() for name in ("src_pose", "src_face", "src_ref")})
    job = api.post(JOBS, files=files).json()
    assert job["status"] == "queued" and job["links"]["reference"]


def test_a_name_is_taken_once(api, raw, left):
    answer = api.post(JOBS, data={"name": "sent"}, files=parts(**raw))
    assert answer.status_code == 409 and answer.json()["errors"][0]["field"] == "name"
    assert not [name for name in left() if name.startswith(".")]


def test_an_upload_sent_twice_is_one_job(api, raw, instance):
    headers = {"idempotency-key": "upload-1"}
    first = api.post(JOBS, files=parts(**raw), headers=headers).json()
    second = api.post(JOBS, files=parts(**raw), headers=headers).json()
    assert first == second
    other = {**raw, "reference": raw["reference"] + b"\0"}
    assert api.post(JOBS, files=parts(**other), headers=headers).status_code == 422
    assert len(instance.get_runs(dg.RunsFilter(tags={"dagster/partition": first["job_id"]}))) == 1


def test_what_was_uploaded_is_purged_whole(api, instance, project):
    assert api.delete(f"{JOBS}/sent", params={"purge": True}).status_code == 204
    assert not (project / "data" / "jobs" / "sent").exists()
    assert "sent" not in instance.get_dynamic_partitions("jobs")


def refused(api, left, status: int, words: str, data=None, files=None, **request) -> None:
    before = left()
    answer = api.post(JOBS, data=data, files=files, **request)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert words in answer.text, answer.text
    assert left() == before


def test_contents_are_looked_at_not_names(api, raw, left):
    refused(api, left, 422, "reference", files=parts(driving=raw["driving"], reference=b"#!/bin/sh\n"))
    refused(api, left, 422, "driving", files=parts(driving=b"not a video at all", reference=raw["reference"]))
    refused(api, left, 422, "expected a video", files=parts(driving=raw["reference"], reference=raw["reference"]))
    refused(api, left, 422, "driving.mp4", files=parts(driving=raw["driving"][:800], reference=raw["reference"]))
    refused(api, left, 422, "reference.png", files=parts(driving=raw["driving"], reference=raw["reference"][:100]))
    refused(api, left, 422, "missing driving", files=parts(reference=raw["reference"]))


def test_limits_hold(api, raw, left, tmp_path):
    refused(api, left, 413, "1 MB", files=parts(driving=raw["driving"] + bytes(1_100_000), reference=raw["reference"]))
    frames = moving_frames(8, 64, 64)
    long = write_video(tmp_path / "long.mp4", frames, 1).read_bytes()
    refused(api, left, 422, "at most 5 s", files=parts(driving=long, reference=raw["reference"]))
    large = write_video(tmp_path / "large.mp4", moving_frames(2, 1040, 1040)).read_bytes()
    refused(api, left, 422, "million pixels", files=parts(driving=large, reference=raw["reference"]))
    refused(api, left, 422, "prompt", data={"prompt": "x" * 70_000}, files=parts(**raw))


def test_forms_are_read_strictly(api, raw, left):
    files = parts(**raw)
    refused(api, left, 422, "unknown field", data={"sampling_stepps": "1"}, files=files)
    refused(api, left, 422, "sampling_steps", data={"sampling_steps": "many"}, files=files)
    refused(api, left, 422, "preprocess.starts", data={"preprocess": '{"starts": 1}'}, files=files)
    refused(api, left, 422, "found a file", files={**files, "keypoints": ("k.json", b"{}")})
    refused(api, left, 422, "expected a file", data={"driving": "text"}, files=parts(reference=raw["reference"]))
    twice = [("driving", ("a", raw["driving"])), ("driving", ("b", raw["driving"]))]
    refused(api, left, 422, "twice", files=twice)
    form = {"content-type": "multipart/form-data"}
    refused(api, left, 422, "form", content=b"no form", headers=form)
    cut = b'--b\r\nContent-Disposition: form-data; name="driving"; filename="x"\r\n\r\nabc'
    refused(api, left, 422, "form", content=cut, headers={"content-type": "multipart/form-data; boundary=b"})
