"""Files that clients send, written to disk as they come."""

import asyncio
import hashlib
import json
import shutil
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, BinaryIO

import yaml
from multipart import MultipartError, ParserLimitReached, PushMultipartParser, parse_options_header
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request

from wan_orchestration.api.confine import without_paths
from wan_orchestration.api.models import Upload
from wan_orchestration.api.problems import FieldProblem, Problem
from wan_orchestration.errors import BadInput
from wan_orchestration.files import remove
from wan_orchestration.formats import A_PICTURE, A_VIDEO, recognise
from wan_orchestration.jobs.clips import CLIPS, REPLACEMENT_CLIPS
from wan_orchestration.jobs.folder import JOB_FILE
from wan_orchestration.jobs.inputs import RAW

SILENCE_SECONDS = 60
"""A client that sends nothing for so long is given up."""

JSON_BYTES = 2**20
FIELD_BYTES = 2**16
WRITE_BYTES = 2**20
PARTS = 100
NAME_LENGTH = 100

FILES = {**{name: name for name in RAW}, **CLIPS, **REPLACEMENT_CLIPS}
"""Names of the form's files, and of those in the job folder; raw ones receive a suffix by what they hold."""

LISTS = {"lora"}
TEXTS = {"name", "prompt", "negative_prompt", "webhook_url"}
"""Fields that are text as they are; others may be numbers, true and false, or JSON."""

ABANDONED_SECONDS = 24 * 3600


@dataclass
class Form:
    """A form that was received: its files lie in `folder`, its other fields are text."""

    folder: Path
    fields: dict[str, Any] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)
    client_names: dict[str, str] = field(default_factory=dict)
    """What the client calls its files."""
    digest: str = ""
    """SHA-256 over names and contents of the files."""

    def label(self, name: str) -> str:
        """A file as its client knows it, `driving (dance.mp4)`."""
        return f"{name} ({self.client_names[name]})" if self.client_names.get(name) else name

    def refusal(self, error: BadInput) -> Problem:
        """An error of the job folder in words of the form: its fields in place of files of the server."""
        text = str(error)
        for name, path in self.files.items():
            text = text.replace(str(path), self.label(name))
        for place in (f"{self.folder / JOB_FILE}: generate.", f"{self.folder / JOB_FILE}: "):
            text = text.replace(place, "")
        text = without_paths(text.replace(str(self.folder), "the form"))
        fields = [
            FieldProblem(field=name, detail=text.removeprefix(f"{name} ").replace(f"({client})", client, 1))
            for name, client in self.client_names.items()
            if text.startswith(f"{self.label(name)}: ")
        ]
        return Problem(422, text, fields)


async def read(request: Request, limit: int) -> bytes:
    """The body of a request. Problem 413: more than `limit` bytes; 408: the client stopped sending."""
    body = bytearray()
    async for chunk in stream(request, limit):
        body += chunk
    return bytes(body)


async def stream(request: Request, limit: int) -> AsyncIterator[bytes]:
    """The body of a request as it comes; errors as for `read`."""
    too_large = Problem(413, f"the request's body is larger than the limit of {limit / 1e6:g} MB")
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > limit:
        raise too_large
    received, chunks = 0, aiter(request.stream())
    while True:
        try:
            async with asyncio.timeout(SILENCE_SECONDS):
                chunk = await anext(chunks, None)
        except TimeoutError:
            raise Problem(408, f"nothing was sent for {SILENCE_SECONDS} s") from None
        except ClientDisconnect:
            raise Problem(400, "the connection was closed before the body was whole") from None
        if not chunk:
            return
        received += len(chunk)
        if received > limit:
            raise too_large
        yield chunk


async def receive(request: Request, root: Path, limit: int) -> Form:
    """Write the files of a form to a new hidden folder in `root`; the caller removes it, or renames it into place.

    Problem 413: more than `limit` bytes; 415, 422: not a form, or one with parts that are not known.
    """
    root.mkdir(parents=True, exist_ok=True)
    form = Form(Path(mkdtemp(prefix=".upload-", dir=root.absolute())))
    form.folder.chmod(0o755)
    try:
        await _Receiver(form).run(request, limit)
    except BaseException:
        remove(form.folder)
        raise
    return form


class _Receiver:
    def __init__(self, form: Form) -> None:
        self.form = form
        self.digests: dict[str, str] = {}
        self.name = ""
        self.file: BinaryIO | None = None
        self.digest = hashlib.sha256()
        self.buffer = bytearray()

    async def run(self, request: Request, limit: int) -> None:
        _, options = parse_options_header(request.headers.get("content-type", ""))
        try:
            with PushMultipartParser(options.get("boundary", ""), max_segment_count=PARTS, strict=True) as parser:
                async for chunk in stream(request, limit):
                    for event in parser.parse(chunk):
                        if event is None:
                            await self.end()
                        elif isinstance(event, bytes | bytearray):
                            await self.take(event)
                        else:
                            self.begin(event.name or "", event.filename)
        except ParserLimitReached as error:
            raise Problem(413, f"the form is too large: {error}") from None
        except MultipartError as error:
            raise Problem(422, f"not a whole multipart/form-data form: {error}") from None
        finally:
            if self.file:
                self.file.close()
        self.form.digest = hashlib.sha256(repr(sorted(self.digests.items())).encode()).hexdigest()

    def begin(self, name: str, filename: str | None) -> None:
        self.name = name
        if name in self.form.files or (name in self.form.fields and name not in LISTS):
            raise _bad(name, "found twice, expected once")
        if name in FILES:
            if filename is None:
                raise _bad(name, "found text, expected a file")
            self.form.files[name] = path = self.form.folder / FILES[name]
            self.form.client_names[name] = _base(filename)
            self.file, self.digest = path.open("xb"), hashlib.sha256()
        elif filename is not None:
            raise _bad(name, f"found a file, which may be named {', '.join(FILES)}")
        elif name not in Upload.model_fields:
            raise _bad(name, "unknown field")

    async def take(self, data: bytes | bytearray) -> None:
        self.buffer += data
        if self.file is None and len(self.buffer) > FIELD_BYTES:
            raise _bad(self.name, f"more than {FIELD_BYTES} bytes")
        if self.file and len(self.buffer) >= WRITE_BYTES:
            await self.flush()

    async def flush(self) -> None:
        assert self.file is not None
        data, self.buffer = bytes(self.buffer), bytearray()
        self.digest.update(data)
        await run_in_threadpool(self.file.write, data)

    async def end(self) -> None:
        if self.file:
            await self.flush()
            self.file.close()
            self.file = None
            self.digests[self.name] = self.digest.hexdigest()
            return
        try:
            text = self.buffer.decode()
        except UnicodeDecodeError:
            raise _bad(self.name, "not UTF-8") from None
        self.buffer = bytearray()
        if self.name in LISTS:
            self.form.fields.setdefault(self.name, []).append(text)
        elif text:
            # An empty field of a form is one that was not filled in.
            self.form.fields[self.name] = text if self.name in TEXTS else _value(text)


def _base(filename: str) -> str:
    """The last part of a path of whatever system, as it may be shown."""
    base = filename.replace("\\", "/").rpartition("/")[2]
    return "".join(letter for letter in base if letter.isprintable())[:NAME_LENGTH]


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _bad(name: str, detail: str) -> Problem:
    shown = name[:80]
    return Problem(422, f"{shown!r}: {detail}", [FieldProblem(field=shown, detail=detail)])


def furnish(form: Form, settings: Upload) -> None:
    """Make a job folder of a form's files and settings; whether it can be used is for others to say.

    BadInput: a file that is neither a video nor a picture.
    """
    for name, path in form.files.items():
        if name in RAW:
            form.files[name] = path.rename(path.with_name(f"{name}.{_suffix(form, name)}"))
    generate = settings.generate_given()
    content = {
        "mode": generate.pop("mode", None),
        "priority": settings.priority,
        "preprocess": settings.preprocess_given(),
        "generate": generate,
    }
    given = {name: value for name, value in content.items() if value}
    (form.folder / JOB_FILE).write_text(yaml.safe_dump(given, allow_unicode=True, sort_keys=False), "utf-8")


def _suffix(form: Form, name: str) -> str:
    """By the first bytes of a file; by the client's name of it where they do not tell. BadInput: not of the kind."""
    found, suffix = recognise(form.files[name])
    given = Path(form.client_names[name]).suffix[1:].lower()
    if suffix is None and given in RAW[name]:
        return given
    if not suffix or suffix not in RAW[name]:
        raise BadInput(f"{form.files[name]}: found {found}, expected {A_VIDEO if name == 'driving' else A_PICTURE}")
    return suffix


def sweep(root: Path) -> None:
    """Remove what servers that were killed have left of uploads."""
    for folder in root.glob(".upload-*"):
        if time.time() - folder.stat().st_mtime > ABANDONED_SECONDS:
            shutil.rmtree(folder, ignore_errors=True)
