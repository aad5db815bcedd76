"""Several pictures for one driving video: uploaded together, or given to people of a job that is ready."""

import io
import json
import os

import dagster as dg
import pillow_heif
import pytest
import yaml
from api_server import JOBS
from PIL import Image

from wan_orchestration.api.review import link_or_copy


def form(raw, *pictures, driving=True, **fields):
    files = {"driving": ("dance.mp4", raw["driving"])} if driving else {}
    files |= {name: (f"{name}.png", raw["reference"]) for name in pictures}
    return {"files": files, "data": {name: json.dumps(value) for name, value in fields.items()}}


def test_a_job_with_two_pictures(api, raw, project):
    persons = ["index:1", "point:0.7,0.5"]
    answer = api.post(JOBS, **form(raw, "reference", "reference_2", characters=persons))
    assert answer.status_code == 202, answer.text
    job = answer.json()
    assert job["characters"] == persons
    folder = project / "data" / "jobs" / job["job_id"]
    assert yaml.safe_load((folder / "job.yaml").read_text()) == {
        "mode": "replace",
        "characters": [
            {"picture": "reference.png", "person": "index:1"},
            {"picture": "reference_2.png", "person": "point:0.7,0.5"},
        ],
    }
    assert api.get(f"{JOBS}/{job['job_id']}/inputs/reference_2").status_code == 200
    assert api.get(f"{JOBS}/{job['job_id']}/inputs/reference_3").status_code == 404


def test_each_heic_picture_is_shown(api, raw, project, monkeypatch):
    given = form(raw, "reference", "reference_2", characters=["index:1", "index:2"])
    for name, size in (("reference", (60, 80)), ("reference_2", (40, 50))):
        pillow_heif.from_pillow(Image.new("RGB", size)).save(content := io.BytesIO())
        given["files"][name] = ("a.heic", content.getvalue())
    key = api.post(JOBS, **given).json()["job_id"]
    for name, size in (("reference", (60, 80)), ("reference_2", (40, 50))):
        assert Image.open(io.BytesIO(api.get(f"{JOBS}/{key}/inputs/{name}").content)).size == size
    monkeypatch.setattr("wan_orchestration.api.jobs.viewable", lambda picture, cache: cache.with_name("gone.jpg"))
    assert api.get(f"{JOBS}/{key}/inputs/reference").status_code == 404, "it was removed meanwhile"
    assert len(list((project / "data" / "playable").glob(f"{key}*"))) == 2
    assert api.delete(f"{JOBS}/{key}", params={"purge": True}).status_code == 204
    assert not list((project / "data" / "playable").glob(f"{key}*"))


def test_files_are_copied_where_there_are_no_hard_links(tmp_path, monkeypatch):
    def refuse(*paths):
        raise PermissionError

    monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "a").write_text("text")
    link_or_copy(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_text() == "text"


@pytest.mark.parametrize(
    "pictures, fields, message",
    [
        (("reference", "reference_2"), {}, "expected whom each of the pictures replaces"),
        (("reference", "reference_2"), {"characters": ["index:1"]}, "found 1 people, and as pictures reference and"),
        (("reference", "reference_3"), {"characters": ["index:1", "index:2"]}, "expected reference and reference_2"),
        (("reference", "reference_2"), {"characters": ["index:1", "index:1"]}, "both replace the person index:1"),
        (("reference", "reference_2"), {"characters": ["index:1", "me"]}, "characters.1.person: found 'me'"),
        (("reference", "reference_2"), {"characters": ["index:1", "index:2"], "mode": "animate"}, "mode: replace"),
    ],
)
def test_pictures_that_do_not_fit_the_people(api, raw, pictures, fields, message):
    answer = api.post(JOBS, **form(raw, *pictures, **fields))
    assert answer.status_code == 422
    assert message in answer.json()["detail"]


def test_people_of_a_ready_job_get_pictures(api, raw, project, report_event, add_job, instance):
    key = api.post(JOBS, **form(raw, "reference", review=True)).json()["job_id"]
    path, given = f"{JOBS}/{key}/characters", form(raw, "reference_2", driving=False, characters=["index:1", "index:2"])
    assert api.post(path, **given).status_code == 409, "it has not ended"
    report_event(key, dg.DagsterEventType.RUN_START)
    report_event(key, dg.DagsterEventType.RUN_SUCCESS)
    assert api.post(path, **form(raw, "reference_3", driving=False, characters=["index:1"])).status_code == 422

    given["data"]["preprocess"] = json.dumps({"start": 0.2})
    answer = api.post(path, **given)
    assert answer.status_code == 202, answer.text
    assert answer.json()["settings"]["preprocess"] == {"start": 0.2}
    assert (answer.json()["status"], answer.json()["review"]) == ("queued", True)
    assert answer.json()["characters"] == ["index:1", "index:2"]
    folder = project / "data" / "jobs" / key
    assert {file.name for file in folder.iterdir() if not file.name.startswith(".")} >= {
        "driving.mp4", "reference.png", "reference_2.png", "job.yaml",
    }  # fmt: skip
    content = yaml.safe_load((folder / "job.yaml").read_text())
    assert (content["mode"], len(content["characters"])) == ("replace", 2)
    assert not [one for one in folder.parent.iterdir() if one.name.startswith(".upload")]
    refused = api.post(f"{JOBS}/{key}/clips", json={"preprocess": {"mask_hints": ["not:1,2", "not:1,2#3"]}})
    assert (refused.status_code, refused.json()["detail"]) == (
        422, "mask_hints: found not:1,2#3, expected a character from 1 to 2",
    )  # fmt: skip

    other = add_job("theirs")
    api.post(JOBS, json={"src_root_path": f"data/jobs/{other}"})
    assert api.post(f"{JOBS}/{other}/characters", **given).status_code == 409, "the folder is somebody's own"
