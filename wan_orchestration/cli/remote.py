"""`wan-animate submit | status | wait | fetch | cancel`: jobs of a server, from a shell."""

import argparse
import json
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import wraps
from pathlib import Path
from typing import Any

import httpx

from wan_orchestration.cli.flags import Parser, add_settings, given_settings
from wan_orchestration.errors import BadInput, validate
from wan_orchestration.files import replacing
from wan_orchestration.settings.generate import GenerateSettings
from wan_orchestration.settings.preprocess import PreprocessSettings
from wan_orchestration.settings.service import ClientSettings

JOBS = "/animate/jobs"
FINISHED = ("succeeded", "failed", "cancelled")
FILES = ("driving", "reference", "src_pose", "src_face", "src_ref", "src_bg", "src_mask")
LOCAL = {"mode", "device", "keypoints", "mask_file", "light_models"}
"""Settings of preprocessing that name files of the server, or that generation has as well."""

TRIES = 8
"""Of a request that the server is too busy for, or does not answer."""
LOOK_SECONDS = 1.0
AWAY_SECONDS = 300.0
"""How long a server that is waited for may be away, while it is started anew for example."""


class Refused(Exception):
    """The server's answer is an error; the message says why."""


class Away(Exception):
    """The server does not answer."""


class Server:
    """A server, by its URL and token."""

    def __init__(self, settings: ClientSettings) -> None:
        token = settings.token
        headers = {"authorization": f"Bearer {token.get_secret_value()}"} if token else {}
        self.http = httpx.Client(base_url=settings.url, headers=headers, timeout=httpx.Timeout(120, connect=10))

    def ask(self, method: str, path: str, send: Callable[[], Mapping[str, Any]] = dict) -> Any:
        """The JSON of an answer; `send` gives what goes with the request, anew for each try. Refused, Away."""
        tries = 0
        while True:
            tries += 1
            try:
                response = self.http.request(method, path, **send())
            except httpx.ConnectError as error:
                raise Away(f"{self.http.base_url} does not answer ({error}); wan-animate serve starts one") from None
            except httpx.TransportError as error:
                # Submissions bear an Idempotency-Key, so that sending one again does no harm.
                if tries == TRIES:
                    raise Away(f"{self.http.base_url} breaks off: {error or type(error).__name__}") from None
                time.sleep(2.0)
                continue
            if response.is_success:
                return response.json() if response.content else None
            if response.status_code not in (429, 503) or tries == TRIES:
                raise Refused(reason(response))
            time.sleep(min(float(response.headers.get("retry-after", 2.0)), 60.0))

    def job(self, job_id: str) -> dict[str, Any]:
        return self.ask("GET", f"{JOBS}/{job_id}")

    def follow(self, job_id: str) -> Iterator[dict[str, Any]]:
        """The job, again and again up to its end, also while the server is started anew. Refused, Away."""
        seen = time.monotonic()
        yield (job := self.job(job_id))
        while job["status"] not in FINISHED:
            time.sleep(LOOK_SECONDS)
            try:
                job, seen = self.job(job_id), time.monotonic()
            except Away:
                if time.monotonic() - seen > AWAY_SECONDS:
                    raise
            yield job

    def fetch(self, job_id: str, target: Path) -> None:
        """Write the job's video to a file, which appears once it is whole. Refused, Away."""
        try:
            with self.http.stream("GET", f"{JOBS}/{job_id}/media") as response:
                if not response.is_success:
                    response.read()
                    raise Refused(reason(response))
                with replacing(target) as part, part.open("wb") as file:
                    for chunk in response.iter_bytes(2**20):
                        file.write(chunk)
        except httpx.TransportError as error:
            raise Away(f"the video did not come whole: {error or type(error).__name__}; try again") from None


def reason(response: httpx.Response) -> str:
    """Why a request was refused, a line for each field at fault."""
    try:
        problem = response.json()
        lines = [f"{entry['field']}: {entry['detail']}" for entry in problem.get("errors", [])]
        return "\n".join(lines) or problem["detail"]
    except (ValueError, KeyError, AttributeError):
        return f"status {response.status_code} from {response.url}"


class Bar:
    """A job's progress on stderr: a bar on a terminal, a line when something has changed elsewhere."""

    width = 30

    def __init__(self) -> None:
        self.live = sys.stderr.isatty()
        self.said = ""

    def show(self, job: Mapping[str, Any]) -> None:
        line = describe(job)
        # That time passes is no news.
        news = describe({**job, "progress": {**job["progress"], "eta_seconds": None}} if job["progress"] else job)
        if self.live:
            fraction = (job["progress"] or {}).get("fraction") or 0.0
            filled = round(self.width * fraction)
            bar = f"[{'#' * filled}{'.' * (self.width - filled)}] " if job["status"] == "running" else ""
            columns = shutil.get_terminal_size().columns - 1
            print(f"\r\033[K{(bar + line)[:columns]}", end="", file=sys.stderr, flush=True)
        elif news != self.said:
            print(line, file=sys.stderr, flush=True)
        self.said = news

    def end(self) -> None:
        if self.live:
            print(file=sys.stderr)


def describe(job: Mapping[str, Any]) -> str:
    """A job in a line."""
    words = [f"{job['job_id']}: {'stopping' if job['cancelling'] else job['status']}"]
    progress = job["progress"]
    if job["queue_position"]:
        words.append(f"number {job['queue_position']} in the queue")
    if progress:
        words.append(progress["words"])
    if progress and progress["eta_seconds"] is not None:
        words.append(f"about {progress['eta_seconds']:.0f} s left")
    if job["error"]:
        words.append(job["error"])
    return ", ".join(words)


def in_words(command: Callable[[Sequence[str]], int]) -> Callable[[Sequence[str]], int]:
    """A command whose errors are words and an exit code."""

    @wraps(command)
    def run(argv: Sequence[str]) -> int:
        try:
            return command(argv)
        except (BadInput, Refused, Away) as error:
            if "--json" in argv:
                print(json.dumps({"error": str(error)}, ensure_ascii=False))
            print(f"error: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            return 130

    return run


@in_words
def submit(argv: Sequence[str]) -> int:
    """`wan-animate submit`; returns the exit code."""
    parser = _parser("submit", "Ask a server for a video: of one of its job folders, or of files that are sent to it.")
    add = parser.add_argument
    add("folder", nargs="?", metavar="FOLDER", help="a job folder of the server, for instance data/jobs/demo")
    for name in FILES:
        add(f"--{name.replace('_', '-')}", type=Path, metavar="FILE", help=f"send this file as the job's {name}")
    add("--name", help="name of the job that is made of files (default: after the files)")
    add("--priority", type=int, help="jobs of higher priority run first (default: 0)")
    add("--webhook-url", help="is sent the job once it has ended")
    add(
        "--idempotency-key", default=str(uuid.uuid4()), help="a submission that is repeated with it makes no second run"
    )
    add("--wait", action="store_true", help="wait for the end, as wan-animate wait does")
    add_settings(parser, GenerateSettings)
    add_settings(parser, PreprocessSettings, leave_out=LOCAL)
    arguments = parser.parse_args(argv)
    files = {name: path for name in FILES if (path := getattr(arguments, name))}
    if bool(arguments.folder) == bool(files):
        raise BadInput("expected either a job folder of the server, or files to send: --driving and --reference")
    for name, path in files.items():
        if not path.is_file():
            raise BadInput(f"--{name} {path}: there is no such file")
    fields = given_settings(arguments, GenerateSettings)
    arguments.mode = arguments.device = None
    fields |= {"preprocess": given_settings(arguments, PreprocessSettings) or None}
    fields |= {name: getattr(arguments, name) for name in ("name", "priority", "webhook_url")}
    fields = {name: value for name, value in fields.items() if value is not None}
    headers = {"idempotency-key": arguments.idempotency_key}
    server = _server(arguments)
    with ExitStack() as stack:

        def send() -> dict[str, Any]:
            if not files:
                return {"json": {"src_root_path": arguments.folder, **fields}, "headers": headers}
            stack.pop_all().close()
            parts = {name: (path.name, stack.enter_context(path.open("rb"))) for name, path in files.items()}
            return {"files": parts, "data": {name: _form(value) for name, value in fields.items()}, "headers": headers}

        job = server.ask("POST", JOBS, send)
    return _wait(server, arguments, job["job_id"]) if arguments.wait else _say(arguments, job)


@in_words
def status(argv: Sequence[str]) -> int:
    """`wan-animate status`; returns the exit code."""
    parser = _parser("status", "Say how a job is, or list the newest.")
    parser.add_argument("job", nargs="?", metavar="JOB", help="its job_id; without one, all jobs")
    parser.add_argument("--status", choices=("queued", "running", *FINISHED), help="list only jobs of this status")
    parser.add_argument("--limit", type=int, default=20, help="list so many at most (default: 20)")
    arguments = parser.parse_args(argv)
    server = _server(arguments)
    if arguments.job:
        return _say(arguments, server.job(arguments.job))
    query = {"limit": arguments.limit, **({"status": arguments.status} if arguments.status else {})}
    jobs = server.ask("GET", JOBS, lambda: {"params": query})["jobs"]
    print(json.dumps(jobs, indent=2) if arguments.json else "\n".join(map(describe, jobs)) or "no jobs")
    return 0


@in_words
def wait(argv: Sequence[str]) -> int:
    """`wan-animate wait`; returns the exit code, 0 only when the job has succeeded."""
    parser = _parser("wait", "Show a job's progress up to its end; the exit code is 0 when it has succeeded.")
    parser.add_argument("job", metavar="JOB", help="its job_id")
    arguments = parser.parse_args(argv)
    return _wait(_server(arguments), arguments, arguments.job)


@in_words
def fetch(argv: Sequence[str]) -> int:
    """`wan-animate fetch`; returns the exit code."""
    parser = _parser("fetch", "Download a job's video, and print its path.")
    parser.add_argument("job", metavar="JOB", help="its job_id")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="where to (default: JOB.mp4)")
    arguments = parser.parse_args(argv)
    target = arguments.output or Path(f"{arguments.job}.mp4")
    _server(arguments).fetch(arguments.job, target)
    print(json.dumps({"job_id": arguments.job, "path": str(target)}) if arguments.json else target)
    return 0


@in_words
def cancel(argv: Sequence[str]) -> int:
    """`wan-animate cancel`; returns the exit code."""
    parser = _parser("cancel", "Cancel a job.")
    parser.add_argument("job", metavar="JOB", help="its job_id")
    parser.add_argument("--purge", action="store_true", help="remove its files as well")
    arguments = parser.parse_args(argv)
    query = {"purge": "true"} if arguments.purge else {}
    job = _server(arguments).ask("DELETE", f"{JOBS}/{arguments.job}", lambda: {"params": query})
    if job:
        return _say(arguments, job)
    print(json.dumps({"job_id": arguments.job, "purged": True}) if arguments.json else f"{arguments.job}: removed")
    return 0


def _parser(command: str, text: str) -> Parser:
    parser = Parser(f"wan-animate {command}", description=text)
    parser.add_argument("--url", help="the server (default: WAN_API_URL, else http://127.0.0.1:8000)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _server(arguments: argparse.Namespace) -> Server:
    return Server(validate(ClientSettings, {"url": arguments.url} if arguments.url else {}))


def _wait(server: Server, arguments: argparse.Namespace, job_id: str) -> int:
    bar, job = Bar(), None
    try:
        for job in server.follow(job_id):
            bar.show(job)
    finally:
        bar.end()
    assert job is not None
    if arguments.json:
        print(json.dumps(job, indent=2))
    return 0 if job["status"] == "succeeded" else 1


def _say(arguments: argparse.Namespace, job: Mapping[str, Any]) -> int:
    print(json.dumps(job, indent=2) if arguments.json else describe(job))
    return 0


def _form(value: Any) -> Any:
    """A setting as a field of a form."""
    return value if isinstance(value, str | list) else json.dumps(value)
