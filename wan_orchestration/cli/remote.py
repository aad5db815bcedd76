"""`wan-animate submit | start | status | wait | fetch | cancel`: jobs of a server, from a shell."""

import argparse
import json
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt, stop_after_delay, wait_fixed

from wan_orchestration.cli.flags import Parser, add_settings, flag, given_settings
from wan_orchestration.cli.terminal import CommandFailed, ProgressLine, print_table, reports_errors
from wan_orchestration.errors import BadInput, validate
from wan_orchestration.files import replacing
from wan_orchestration.settings.generate import GenerateSettings
from wan_orchestration.settings.preprocess import PreprocessSettings
from wan_orchestration.settings.service import ClientSettings

JOBS = "/animate/jobs"
FINISHED = ("ready", "succeeded", "failed", "cancelled")
"""Nothing happens then until somebody asks for more."""
READY = 3
"""Exit code of `wait` for a job that waits for a look at its clips."""
FILES = ("driving", "reference", "src_pose", "src_face", "src_ref", "src_bg", "src_mask")
NOT_SENT = {"model", "mode", "device", "keypoints", "mask_file", "light_models"}
"""Preprocessing settings without a flag: files of the server, and settings that generation has too."""
OF_CLIPS = {"model", "mode"}
"""Settings of generation for which clips are made: those that are there cannot be used with others."""

TRIES = 8
"""How often a request is sent while the server is busy or connections break."""
PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 2.0, 60.0
"""Between two tries: the default if the server names no time, and the maximum."""
POLL_SECONDS = 1.0
AWAY_SECONDS = 300.0
"""How long `wait` waits for a server that does not answer, for example because it restarts."""


class RequestRefused(CommandFailed):
    """The server's answer is an error."""


class ServerBusy(RequestRefused):
    """The server asks the client to send the request again after `retry_after` seconds."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ServerAway(CommandFailed):
    """The server does not answer."""


class ConnectionBroken(ServerAway):
    """The connection broke during a request. A retry is safe: submissions carry an Idempotency-Key."""


class RemoteServer:
    """A server, by its URL and token."""

    def __init__(self, settings: ClientSettings) -> None:
        token = settings.token
        headers = {"authorization": f"Bearer {token.get_secret_value()}"} if token else {}
        self.http = httpx.Client(base_url=settings.url, headers=headers, timeout=httpx.Timeout(120, connect=10))

    def ask(self, method: str, path: str, **request: Any) -> Any:
        """Send a request, with retries; returns the JSON of the answer. RequestRefused, ServerAway."""
        retrying = Retrying(
            retry=retry_if_exception_type((ServerBusy, ConnectionBroken)),
            wait=_pause,
            stop=stop_after_attempt(TRIES),
            reraise=True,
        )
        return retrying(self._ask_once, method, path, **request)

    def _ask_once(self, method: str, path: str, **request: Any) -> Any:
        try:
            response = self.http.request(method, path, **request)
        except httpx.ConnectError as error:
            raise ServerAway(f"{self.http.base_url} does not answer ({error}); wan-animate serve starts one") from None
        except httpx.TransportError as error:
            words = error or type(error).__name__
            raise ConnectionBroken(f"{self.http.base_url}: the connection broke: {words}") from None
        if response.is_success:
            return response.json() if response.content else None
        if response.status_code in (429, 503):
            raise ServerBusy(reason(response), float(response.headers.get("retry-after", PAUSE_SECONDS)))
        raise RequestRefused(reason(response))

    def job(self, job_id: str) -> dict[str, Any]:
        return self.ask("GET", f"{JOBS}/{job_id}")

    def follow(self, job_id: str) -> Iterator[dict[str, Any]]:
        """Poll the job until it ends, through restarts of the server. RequestRefused, ServerAway."""
        retrying = Retrying(
            retry=retry_if_exception_type(ServerAway),
            wait=wait_fixed(POLL_SECONDS),
            stop=stop_after_delay(AWAY_SECONDS),
            reraise=True,
        )
        yield (job := self.job(job_id))
        while job["status"] not in FINISHED:
            time.sleep(POLL_SECONDS)
            yield (job := retrying(self.job, job_id))

    def fetch(self, job_id: str, target: Path) -> None:
        """Write the job's video to a file, which appears once it is complete. RequestRefused, ServerAway."""
        try:
            with self.http.stream("GET", f"{JOBS}/{job_id}/media") as response:
                if not response.is_success:
                    response.read()
                    raise RequestRefused(reason(response))
                with replacing(target) as part, part.open("wb") as file:
                    for chunk in response.iter_bytes(2**20):
                        file.write(chunk)
        except httpx.TransportError as error:
            raise ServerAway(f"the download broke off: {error or type(error).__name__}; try again") from None


def _pause(state: RetryCallState) -> float:
    """Seconds before the next try."""
    error = state.outcome and state.outcome.exception()
    return min(error.retry_after, LONGEST_PAUSE_SECONDS) if isinstance(error, ServerBusy) else PAUSE_SECONDS


def reason(response: httpx.Response) -> str:
    """Why a request was refused: a line for each field that is wrong."""
    try:
        problem = response.json()
        lines = [f"{entry['field']}: {entry['detail']}" for entry in problem.get("errors", [])]
        return "\n".join(lines) or problem["detail"]
    except (ValueError, KeyError, AttributeError):
        return f"status {response.status_code} from {response.url}"


def state_of(job: Mapping[str, Any]) -> str:
    return "stopping" if job["cancelling"] else job["status"]


def details(job: Mapping[str, Any], eta: bool = True) -> str:
    """Place in the queue, progress, seconds left (unless `eta` is false) and error of a job."""
    words: list[str] = []
    progress = job["progress"]
    if job["queue_position"]:
        words.append(f"number {job['queue_position']} in the queue")
    if progress:
        words.append(progress["words"])
    if progress and eta and progress["eta_seconds"] is not None:
        words.append(f"about {progress['eta_seconds']:.0f} s left")
    if job["error"]:
        words.append(job["error"])
    if job["status"] == "ready":
        words.append(f"look at its clips on the server's page, then: wan-animate start {job['job_id']}")
    return ", ".join(words)


def describe(job: Mapping[str, Any], eta: bool = True) -> str:
    """A job in one line."""
    words = details(job, eta)
    return f"{job['job_id']}: {state_of(job)}" + (f", {words}" if words else "")


command = reports_errors(as_json=lambda argv, error: {"error": error} if "--json" in argv else None)


@command
def submit(argv: Sequence[str]) -> int:
    """`wan-animate submit`."""
    arguments = parse_submission(argv)
    files = {name: path for name in FILES if (path := getattr(arguments, name))}
    if bool(arguments.folder) == bool(files):
        raise BadInput("expected either a job folder of the server, or files to send: --driving and --reference")
    for name, path in files.items():
        if not path.is_file():
            raise BadInput(f"{flag(name)} {path}: there is no such file")
    fields: dict[str, Any] = {
        **given_settings(arguments, GenerateSettings),
        "preprocess": given_settings(arguments, PreprocessSettings, leave_out=NOT_SENT) or None,
        **{name: getattr(arguments, name) for name in ("name", "priority", "webhook_url", "review")},
    }
    fields = {name: value for name, value in fields.items() if value is not None}
    server = _server(arguments)
    with ExitStack() as opened:
        # httpx reads the files from their start at each try.
        parts = {name: (path.name, opened.enter_context(path.open("rb"))) for name, path in files.items()}
        content: dict[str, Any] = (
            {"files": parts, "data": {name: _form_field(value) for name, value in fields.items()}}
            if files
            else {"json": {"src_root_path": arguments.folder, **fields}}
        )
        job = server.ask("POST", JOBS, headers={"idempotency-key": arguments.idempotency_key}, **content)
    return _wait(server, arguments, job["job_id"]) if arguments.wait else _print_job(arguments, job)


def parse_submission(argv: Sequence[str]) -> argparse.Namespace:
    """The flags of `wan-animate submit`. BadInput."""
    parser = _parser("submit", "Ask a server for a video: of one of its job folders, or of files that you send.")
    add = parser.add_argument
    add("folder", nargs="?", metavar="FOLDER", help="a job folder of the server, for instance data/jobs/demo")
    for name in FILES:
        add(flag(name), type=Path, metavar="FILE", help=f"send this file as the job's {name}")
    add("--name", help="name of the job that the files become (default: made from the files' names)")
    add("--priority", type=int, help="jobs of higher priority run first (default: 0)")
    add("--webhook-url", help="the server posts the job to this URL when it ends")
    add("--review", action="store_const", const=True, help="make the clips and stop, so that you can look at them")
    _add_idempotency(parser)
    _add_wait(parser)
    add_settings(parser, GenerateSettings)
    add_settings(parser, PreprocessSettings, leave_out=NOT_SENT)
    return parser.parse_args(argv)


@command
def start(argv: Sequence[str]) -> int:
    """`wan-animate start`."""
    parser = _parser("start", "Make the video of a job whose clips you have looked at.")
    parser.add_argument("job", metavar="JOB", help="its job_id")
    _add_idempotency(parser)
    _add_wait(parser)
    add_settings(parser, GenerateSettings, leave_out=OF_CLIPS)
    arguments = parser.parse_args(argv)
    settings, server = given_settings(arguments, GenerateSettings, leave_out=OF_CLIPS), _server(arguments)
    headers = {"idempotency-key": arguments.idempotency_key}
    job = server.ask("POST", f"{JOBS}/{arguments.job}/start", headers=headers, json=settings)
    return _wait(server, arguments, job["job_id"]) if arguments.wait else _print_job(arguments, job)


@command
def status(argv: Sequence[str]) -> int:
    """`wan-animate status`."""
    parser = _parser("status", "Show one job, or list the newest.")
    parser.add_argument("job", nargs="?", metavar="JOB", help="its job_id (default: list jobs)")
    parser.add_argument("--status", choices=("queued", "running", *FINISHED), help="list only jobs of this status")
    parser.add_argument("--limit", type=int, default=20, help="list at most this many (default: 20)")
    arguments = parser.parse_args(argv)
    server = _server(arguments)
    if arguments.job:
        return _print_job(arguments, server.job(arguments.job))
    query = {"limit": arguments.limit, **({"status": arguments.status} if arguments.status else {})}
    jobs = server.ask("GET", JOBS, params=query)["jobs"]
    if arguments.json:
        print(json.dumps(jobs, indent=2))
    elif jobs:
        print_table(("job", "status", "details"), [(job["job_id"], state_of(job), details(job)) for job in jobs])
    else:
        print("no jobs")
    return 0


@command
def wait(argv: Sequence[str]) -> int:
    """`wan-animate wait`; the exit code is 0 only if the job succeeded."""
    text = f"Show a job's progress until it ends; the exit code is 0 if it succeeded, {READY} if you are to look at it."
    parser = _parser("wait", text)
    parser.add_argument("job", metavar="JOB", help="its job_id")
    arguments = parser.parse_args(argv)
    return _wait(_server(arguments), arguments, arguments.job)


@command
def fetch(argv: Sequence[str]) -> int:
    """`wan-animate fetch`."""
    parser = _parser("fetch", "Download a job's video, and print its path.")
    parser.add_argument("job", metavar="JOB", help="its job_id")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="the file to write (default: JOB.mp4)")
    arguments = parser.parse_args(argv)
    target = arguments.output or Path(f"{arguments.job}.mp4")
    _server(arguments).fetch(arguments.job, target)
    print(json.dumps({"job_id": arguments.job, "path": str(target)}) if arguments.json else target)
    return 0


@command
def cancel(argv: Sequence[str]) -> int:
    """`wan-animate cancel`."""
    parser = _parser("cancel", "Cancel a job.")
    parser.add_argument("job", metavar="JOB", help="its job_id")
    parser.add_argument("--purge", action="store_true", help="also remove its files")
    arguments = parser.parse_args(argv)
    query = {"purge": "true"} if arguments.purge else {}
    job = _server(arguments).ask("DELETE", f"{JOBS}/{arguments.job}", params=query)
    if job:
        return _print_job(arguments, job)
    print(json.dumps({"job_id": arguments.job, "purged": True}) if arguments.json else f"{arguments.job}: removed")
    return 0


def _parser(command: str, text: str) -> Parser:
    parser = Parser(f"wan-animate {command}", description=text)
    parser.add_argument("--url", help="the server (default: WAN_API_URL, else http://127.0.0.1:8000)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _add_idempotency(parser: Parser) -> None:
    text = "requests with the same key start only one run"
    parser.add_argument("--idempotency-key", default=str(uuid.uuid4()), help=text)


def _add_wait(parser: Parser) -> None:
    parser.add_argument("--wait", action="store_true", help="wait for the end, as wan-animate wait does")


def _server(arguments: argparse.Namespace) -> RemoteServer:
    return RemoteServer(validate(ClientSettings, {"url": arguments.url} if arguments.url else {}))


def _wait(server: RemoteServer, arguments: argparse.Namespace, job_id: str) -> int:
    """Show a job's progress until it ends; returns the exit code."""
    job, printed = None, ""
    with ProgressLine(quiet_seconds=0) as line:
        for job in server.follow(job_id):
            news = describe(job, eta=False)
            if job["status"] not in FINISHED and (line.live or news != printed):
                line.show(describe(job), (job["progress"] or {}).get("fraction"))
                printed = news
        assert job is not None
        line.log(describe(job))
    if arguments.json:
        print(json.dumps(job, indent=2))
    return {"succeeded": 0, "ready": READY}.get(job["status"], 1)


def _print_job(arguments: argparse.Namespace, job: Mapping[str, Any]) -> int:
    print(json.dumps(job, indent=2) if arguments.json else describe(job))
    return 0


def _form_field(value: Any) -> Any:
    """A setting as a form field."""
    return value if isinstance(value, str | list) else json.dumps(value)
