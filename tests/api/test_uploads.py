"""An upload becomes a complete job folder, or leaves nothing behind."""

import io
import json

import dagster as dg
import pillow_heif
import pytest
import yaml
from api_server import JOBS
from media import moving_frames, write_video
from PIL import Image

from wan_orchestration.api.playable import playable
from wan_orchestration.jobs.folder import Job
from wan_orchestration.video.reader import probe


def parts(**files: bytes) -> dict:
    return {name: ("../../evil.sh", content, "text/x-shellscript") for name, content in files.items()}


@pytest.fixture
def names(project):
    """Names in the jobs folder, hidden ones included: unfinished uploads are hidden."""
    return lambda: sorted(path.name for path in (project / "data" / "jobs").iterdir())


def test_a_picture_and_a_video_become_a_job(api, raw, project, instance, names):
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
    assert names() == ["sent"]


def test_ready_clips_can_be_uploaded(api, clips):
    files = parts(**{name: next(clips.glob(f"{name}.*")).read_bytes() for name in ("src_pose", "src_face", "src_ref")})
    job = api.post(JOBS, files=files).json()
    assert job["status"] == "queued" and job["links"]["reference"]


def test_a_name_can_be_used_once(api, raw, names):
    answer = api.post(JOBS, data={"name": "sent"}, files=parts(**raw))
    assert answer.status_code == 409 and answer.json()["errors"][0]["field"] == "name"
    assert not [name for name in names() if name.startswith(".")]


def test_a_repeated_upload_is_one_job(api, raw, instance):
    headers = {"idempotency-key": "upload-1"}
    first = api.post(JOBS, files=parts(**raw), headers=headers).json()
    second = api.post(JOBS, files=parts(**raw), headers=headers).json()
    assert first == second
    other = {**raw, "reference": raw["reference"] + b"\0"}
    assert api.post(JOBS, files=parts(**other), headers=headers).status_code == 422
    assert len(instance.get_runs(dg.RunsFilter(tags={"dagster/partition": first["job_id"]}))) == 1


def test_purging_removes_the_uploaded_files(api, instance, project):
    assert api.delete(f"{JOBS}/sent", params={"purge": True}).status_code == 204
    assert not (project / "data" / "jobs" / "sent").exists()
    assert "sent" not in instance.get_dynamic_partitions("jobs")


def refused(api, names, status: int, words: str, data=None, files=None, **request):
    before = names()
    answer = api.post(JOBS, data=data, files=files, **request)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert words in answer.text, answer.text
    assert names() == before
    return answer


def test_contents_count_not_names(api, raw, names):
    video, picture = raw["driving"], raw["reference"]
    for files, words in [
        (parts(driving=video, reference=b"#!/bin/sh\n"), "reference (evil.sh): found a text, expected a picture"),
        (parts(driving=b"not a video at all", reference=picture), "driving (evil.sh): found a text, expected a video"),
        (parts(driving=picture, reference=picture), "driving (evil.sh): found a PNG picture, expected a video"),
        (parts(driving=video[:800], reference=picture), "driving (evil.sh): "),
        (parts(driving=video, reference=picture[:100]), "reference (evil.sh): found a PNG picture that is damaged"),
        (parts(reference=picture), "the form: missing driving"),
        ({"driving": ("a.psd", b"8BPS\0"), **parts(reference=picture)}, "driving (a.psd): found a Photoshop document"),
    ]:
        answer = refused(api, names, 422, words, files=files)
        assert "driving.mp4" not in answer.text and "reference.png" not in answer.text
        assert ".upload" not in answer.text
    (problem,) = answer.json()["errors"]
    assert problem["field"] == "driving" and problem["detail"].startswith(
        "a.psd: found a Photoshop document (PSD), exp"
    )


def test_heic_pictures_are_shown_as_jpegs(api, raw, project, tmp_path):
    pillow_heif.from_pillow(Image.open(io.BytesIO(raw["reference"]))).save(tmp_path / "IMG_1.HEIC")
    files = {
        "driving": ("VID 2.MOV", raw["driving"]),
        "reference": ("IMG_1.HEIC", (tmp_path / "IMG_1.HEIC").read_bytes()),
    }
    answer = api.post(JOBS, files=files)
    assert answer.status_code == 202, answer.text
    job = answer.json()
    assert job["job_id"] == "img-1-vid-2"
    assert (project / "data" / "jobs" / "img-1-vid-2" / "reference.heic").is_file()
    for _ in range(2):
        shown = api.get(job["links"]["reference"])
        assert shown.headers["content-type"] == "image/jpeg"
        assert Image.open(io.BytesIO(shown.content)).size == (60, 80)


def test_videos_that_browsers_cannot_play_are_converted(tmp_path):
    video = write_video(
        tmp_path / "odd.mkv", [frame[:63, :65].copy() for frame in moving_frames(5, 64, 66)], 10, "mpeg4"
    )
    copy = playable(video, tmp_path / "copy.mp4")
    assert probe(copy).frames == 5 and (probe(copy).width, probe(copy).height) == (64, 62)
    plain = write_video(tmp_path / "plain.mp4", moving_frames(2, 64, 64), 10)
    assert playable(plain, tmp_path / "none.mp4") == plain


def test_limits_are_enforced(api, raw, names, tmp_path):
    refused(api, names, 413, "1 MB", files=parts(driving=raw["driving"] + bytes(1_100_000), reference=raw["reference"]))
    frames = moving_frames(8, 64, 64)
    long = write_video(tmp_path / "long.mp4", frames, 1).read_bytes()
    refused(api, names, 422, "at most 5 s", files=parts(driving=long, reference=raw["reference"]))
    large = write_video(tmp_path / "large.mp4", moving_frames(2, 1040, 1040)).read_bytes()
    refused(api, names, 422, "million pixels", files=parts(driving=large, reference=raw["reference"]))
    refused(api, names, 422, "prompt", data={"prompt": "x" * 70_000}, files=parts(**raw))


def test_invalid_forms_are_refused(api, raw, names):
    files = parts(**raw)
    refused(api, names, 422, "unknown field", data={"sampling_stepps": "1"}, files=files)
    refused(api, names, 422, "sampling_steps", data={"sampling_steps": "many"}, files=files)
    refused(api, names, 422, "preprocess.starts", data={"preprocess": '{"starts": 1}'}, files=files)
    for settings, field in (
        ({"face_strength": "0.5"}, "face_strength"),
        ({"preprocess": '{"retarget": "off"}'}, "preprocess.retarget"),
        ({"mode": "replace"}, "model"),
    ):
        answer = refused(api, names, 422, "model", data={"model": "animate-2"} | settings, files=files)
        assert [error["field"] for error in answer.json()["errors"]] == [field], answer.text
    refused(api, names, 422, "found a file", files={**files, "keypoints": ("k.json", b"{}")})
    refused(api, names, 422, "expected a file", data={"driving": "text"}, files=parts(reference=raw["reference"]))
    twice = [("driving", ("a", raw["driving"])), ("driving", ("b", raw["driving"]))]
    refused(api, names, 422, "twice", files=twice)
    form = {"content-type": "multipart/form-data"}
    refused(api, names, 422, "form", content=b"no form", headers=form)
    cut = b'--b\r\nContent-Disposition: form-data; name="driving"; filename="x"\r\n\r\nabc'
    refused(api, names, 422, "form", content=cut, headers={"content-type": "multipart/form-data; boundary=b"})
