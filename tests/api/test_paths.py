"""No request reads or writes files outside the data folder."""

import shutil
from pathlib import Path

import pytest
from api_server import JOBS

from wan_orchestration.api.paths import without_paths

PATHS = [
    "..",
    ".",
    "/",
    "",
    "../jobs/good",
    "data/jobs/../jobs/good",
    "data/jobs/good/..",
    "data/jobs/../../secret",
    "data/jobs/good/../../../secret",
    "data/../data/jobs/good",
    "/etc",
    "/etc/passwd",
    "//etc/passwd",
    "~/good",
    "~root",
    "data/jobs/~root",
    "data/jobs",
    "data/jobs/",
    "data/jobs/good/src_pose.mp4",
    "data/jobs/.hidden",
    "data/jobs/link",
    "data/jobs/inside-link",
    "data/jobs/leaky",
    "data\\jobs\\good",
    "..\\..\\secret",
    "data/jobs/good\x00.png",
    "data/jobs/good\n",
    "data/jobs/GOOD",
    "data/jobs/%2e%2e/secret",
    "data/jobs/％２ｅ％２ｅ",
    "file:///etc/passwd",
    "data/videos/good",
    "secret",
    "/proc/self/cwd/data/jobs/good",
    "a" * 64,
    "a" * 2000,
]

BODIES = [
    b"",
    b"{",
    b"[]",
    b"null",
    b'"data/jobs/good"',
    b'{"src_root_path": 1}',
    b'{"src_root_path": ["data/jobs/good"]}',
    b'{"src_root_path": "\\ud800"}',
    b'{"src_root_path": "data/jobs/good", "lora": ["/etc/passwd"]}',
    b'{"src_root_path": "data/jobs/good", "lora": ["../secret/key.safetensors:0.5"]}',
    b'{"src_root_path": "data/jobs/good", "lora": ["data/models/../jobs/good/x.safetensors"]}',
    b'{"src_root_path": "data/jobs/good", "preprocess": {"light_models": "/etc"}}',
    b'{"src_root_path": "data/jobs/good", "preprocess": {"mask_file": "../x.mp4"}}',
    b'{"src_root_path": "data/jobs/good", "prompt": "' + b"x" * 6000 + b'"}',
    b'{"src_root_path": "data/jobs/good", "output": "/tmp/out"}',
    b'{"src_root_path": "data/jobs/good", "seed": 1e400}',
    b'{"src_root_path": "data/jobs/good", "seed": 99999999999999999999999}',
]

URLS = [
    "/animate/jobs/../../secret",
    "/animate/jobs/%2e%2e/%2e%2e/secret",
    "/animate/jobs/..%2f..%2fsecret/media",
    "/animate/jobs/%2e%2e/media",
    "/animate/jobs/good/inputs/..%2f..%2fsecret",
    "/animate/jobs/good/src_pose.mp4",
    "/animate/jobs/good/job.yaml",
    "/page/../services.py",
    "/page/%2e%2e/services.py",
    "/page/..%2fservices.py",
    "/page//etc/passwd",
]

NAMES = ["../x", "/tmp/x", "..", ".x", "a/b", "A", "x" * 64, "a\0b", "con:"]


@pytest.fixture(scope="module", autouse=True)
def traps(project, add_job, clips):
    add_job("good")
    jobs, secret = project / "data" / "jobs", project / "secret"
    secret.mkdir()
    for file in clips.iterdir():
        shutil.copy(file, secret)
    (jobs / "link").symlink_to(secret)
    (jobs / "inside-link").symlink_to("good")
    (jobs / "leaky").mkdir()
    for file in secret.iterdir():
        (jobs / "leaky" / file.name).symlink_to(file)
    (jobs / ".hidden").mkdir()


@pytest.fixture
def unchanged(project, instance):
    """Checks that files outside Dagster's instance, and the jobs in it, do not change."""

    def state() -> tuple:
        files = [(path, path.lstat().st_mtime_ns) for path in project.rglob("*") if path.is_file()]
        files = [entry for entry in files if "dagster_home" not in entry[0].parts and entry[0].suffix != ".lock"]
        return sorted(files), instance.get_runs_count(), instance.get_dynamic_partitions("jobs")

    before = state()
    yield
    assert state() == before


def check(answer, *statuses: int) -> None:
    assert answer.status_code in statuses, (answer.status_code, answer.text)
    assert answer.headers["content-type"] == "application/problem+json"
    assert "secret/" not in answer.text.replace("../secret/key", "")


@pytest.mark.parametrize("path", PATHS)
def test_only_job_folders_are_accepted(api, unchanged, project, path):
    check(api.post(JOBS, json={"src_root_path": path.replace("secret", str(project / "secret"))}), 422)
    check(api.post(JOBS, json={"src_root_path": path}), 422)


@pytest.mark.parametrize("body", BODIES)
def test_bodies_with_forbidden_content(api, unchanged, body):
    check(api.post(JOBS, content=body, headers={"content-type": "application/json"}), 422)


@pytest.mark.parametrize("url", URLS)
def test_urls_reach_no_other_files(api, unchanged, url):
    check(api.get(url), 404, 422)


@pytest.mark.parametrize("name", NAMES)
def test_upload_names_must_be_job_names(api, unchanged, raw, name):
    files = {part: ("x", content) for part, content in raw.items()}
    check(api.post(JOBS, data={"name": name}, files=files), 422)


def test_too_large_bodies_are_refused(api, unchanged, raw):
    json_type = {"content-type": "application/json"}
    check(api.post(JOBS, content=b" " * (2**20 + 1), headers=json_type), 413)
    check(api.post(JOBS, content=iter([b" " * 2**20, b"{}"]), headers=json_type), 413)
    check(api.post(JOBS, content=b"[" * 500_000, headers=json_type), 422)
    form = {"content-type": "multipart/form-data; boundary=b"}
    check(api.post(JOBS, content=(b"x" * 2**16 for _ in range(20)), headers=form), 413, 422)
    part = b'--b\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n'
    endless = [part % (b"driving", b'; filename="x"'), *[b"x" * 2**16] * 20]
    check(api.post(JOBS, content=iter(endless), headers=form), 413)
    check(api.post(JOBS, content=part % (b"x" * 100_000, b""), headers=form), 413, 422)
    many = b"".join(part % (b"lora", b"") + b"x\r\n" for _ in range(200)) + b"--b--\r\n"
    check(api.post(JOBS, content=many, headers=form), 413)
    check(api.post(JOBS, content=b"x=1", headers={"content-type": "application/x-www-form-urlencoded"}), 415)
    check(api.post("/session", content=b"x" * 20_000), 413)


def test_a_job_folder_can_be_named_in_three_ways(api, project):
    first = api.post(JOBS, json={"src_root_path": "data/jobs/good"})
    assert first.status_code == 202
    for path in ("good", "data/jobs/good/", "./data/jobs/good", str(project / "data" / "jobs" / "good")):
        again = api.post(JOBS, json={"src_root_path": path})
        assert again.status_code == 202 and again.json()["run_id"] == first.json()["run_id"], path


def test_paths_of_the_server_are_shortened(project):
    text = (
        f"{project}/data/jobs/a/src.mp4: see ({Path.home()}/x/y.py), 'https://a.b/c/d' and/or 3 px/s, /usr/lib/x.so:3"
    )
    assert without_paths(text) == "data/jobs/a/src.mp4: see (…/y.py), 'https://a.b/c/d' and/or 3 px/s, …/x.so:3"
    assert without_paths(f"{project}/data/models/m, {project}/dagster_home/x") == "data/models/m, dagster_home/x"
