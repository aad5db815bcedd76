"""The client commands with a real server but without a daemon; test_daemon.py has one."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import httpx
import pytest
import yaml
from api_server import free_port, serving

from wan_orchestration.cli import main as cli
from wan_orchestration.cli import remote as client
from wan_orchestration.settings.service import ClientSettings

TOKEN = "a-token-of-some-length"


@pytest.fixture(scope="module")
def url(project) -> Iterator[str]:
    with serving(project, free_port(), WAN_API_TOKEN=TOKEN) as url, pytest.MonkeyPatch.context() as patch:
        patch.setenv("WAN_API_URL", url)
        patch.setenv("WAN_API_TOKEN", TOKEN)
        yield url


@pytest.fixture
def run(url, capsys) -> Callable[..., tuple[int, str, str]]:
    def command(*arguments: str) -> tuple[int, str, str]:
        code = cli.main(list(arguments))
        output = capsys.readouterr()
        return code, output.out, output.err

    return command


def test_files_are_sent_and_the_job_is_cancelled(run, raw, tmp_path, project):
    for name, content in raw.items():
        (tmp_path / name).write_bytes(content)
    files = ["--driving", str(tmp_path / "driving"), "--reference", str(tmp_path / "reference")]
    settings = ["--sampling-steps", "3", "--no-offload-model", "--start", "0.1", "--mode", "animate", "--priority", "2"]
    code, out, _ = run("submit", *files, *settings, "--name", "sent", "--json")
    assert code == 0 and json.loads(out)["job_id"] == "sent"
    assert yaml.safe_load((project / "data/jobs/sent/job.yaml").read_text()) == {
        "mode": "animate",
        "priority": 2,
        "preprocess": {"start": 0.1},
        "generate": {"sampling_steps": 3, "offload_model": False},
    }
    assert run("status", "sent")[1] == "sent: queued, number 1 in the queue\n"
    assert run("status", "--status", "succeeded")[1] == "no jobs\n"
    assert run("status")[1].splitlines()[1] == "sent  queued  number 1 in the queue"
    assert [job["job_id"] for job in json.loads(run("status", "--json")[1])] == ["sent"]
    code, _, err = run("fetch", "sent", "-o", str(tmp_path / "out.mp4"))
    assert code == 1 and "queued" in err and not (tmp_path / "out.mp4").exists()
    assert run("cancel", "sent")[1] == "sent: cancelled\n"
    code, out, err = run("wait", "sent", "--json")
    assert code == 1 and json.loads(out)["status"] == "cancelled" and "cancelled" in err
    assert run("cancel", "sent", "--purge")[1] == "sent: removed\n"


def test_a_job_is_looked_at_before_it_starts(run, raw, tmp_path, project, report_event):
    for name, content in raw.items():
        (tmp_path / name).write_bytes(content)
    files = ["--driving", str(tmp_path / "driving"), "--reference", str(tmp_path / "reference")]
    assert run("submit", *files, "--name", "looked", "--review", "--priority", "1")[0] == 0
    assert yaml.safe_load((project / "data/jobs/looked/job.yaml").read_text()) == {"priority": 1, "review": True}
    code, _, err = run("start", "looked")
    assert code == 1 and "has not ended" in err
    report_event("looked", dg.DagsterEventType.RUN_START)
    report_event("looked", dg.DagsterEventType.RUN_SUCCESS)
    code, _, err = run("wait", "looked")
    assert code == client.READY and "wan-animate start looked" in err
    assert run("status", "--status", "ready", "--json")[1].count('"job_id"') == 1
    code, _, err = run("start", "looked")
    assert code == 1 and "no clips" in err
    assert run("cancel", "looked", "--purge")[1] == "looked: removed\n"


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["submit"], "--driving and --reference"),
        (["submit", "data/jobs/x", "--driving", "x.mp4"], "--driving and --reference"),
        (["submit", "--driving", "no.mp4", "--reference", "no.png"], "no.mp4: there is no such file"),
        (["submit", "data/jobs/nobody"], "data/jobs/nobody: no such job folder"),
        (["submit", "data/jobs/x", "--sampling-steps", "0"], "sampling_steps: expected greater than"),
        (["status", "nobody"], "there is no job 'nobody'"),
        (["wait", "nobody"], "there is no job 'nobody'"),
        (["cancel", "nobody"], "there is no job 'nobody'"),
        (["status", "x", "--url", "http://127.0.0.1:9"], "does not answer"),
        (["status", "--nonsense"], "--nonsense"),
    ],
)
def test_errors_are_messages(run, arguments, words):
    code, out, err = run(*arguments)
    assert code == 1 and out == "" and err.startswith("error: ") and words in err
    code, out, _ = run(*arguments, "--json")
    assert code == 1 and words in json.loads(out)["error"]


def test_a_token_is_needed(run, monkeypatch):
    monkeypatch.setenv("WAN_API_TOKEN", "another-token-of-some-length")
    assert "token" in run("status")[2]


def test_client_and_server_know_the_same_files():
    from wan_orchestration.api.uploads import FILES

    assert set(client.FILES) <= set(FILES), "the pictures of further characters come with a job folder or the page"
    assert ClientSettings.model_fields["url"].default == "http://127.0.0.1:8000"
    assert Path(client.__file__).read_text().count("wan_orchestration.api") == 0


def test_a_busy_server_is_asked_again(tmp_path):
    """Files are sent from their start again."""
    bodies = []

    def answer(request: httpx.Request) -> httpx.Response:
        bodies.append(request.read())
        busy = len(bodies) == 1
        return httpx.Response(503 if busy else 200, json={"detail": "busy"}, headers={"retry-after": "0"})

    server = client.RemoteServer(ClientSettings())
    server.http = httpx.Client(base_url="http://server", transport=httpx.MockTransport(answer))
    (tmp_path / "file").write_bytes(b"content")
    with (tmp_path / "file").open("rb") as file:
        assert server.ask(
            "POST", "/", files={"file": file}, headers={"content-type": "multipart/form-data; boundary=b"}
        )
    assert len(bodies) == 2 and bodies[0] == bodies[1] and b"content" in bodies[0]


@pytest.mark.parametrize("status, tries", [(503, client.TRIES), (409, 1)])
def test_a_server_that_refuses(status, tries):
    answers = [httpx.Response(status, json={"detail": "not today"}, headers={"retry-after": "0"})] * client.TRIES
    remaining = iter(answers)
    server = client.RemoteServer(ClientSettings())
    server.http = httpx.Client(base_url="http://server", transport=httpx.MockTransport(lambda request: next(remaining)))
    with pytest.raises(client.RequestRefused, match="not today"):
        server.ask("GET", "/")
    assert len(list(remaining)) == client.TRIES - tries
