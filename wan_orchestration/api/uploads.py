"""Receives the files that clients send, and turns them into job folders."""

import asyncio
import hashlib
import json
import shutil
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, BinaryIO

import yaml
from multipart import MultipartError, ParserLimitReached, PushMultipartParser, parse_options_header
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request

from wan_orchestration.api.models import Upload
from wan_orchestration.api.paths import without_paths
from wan_orchestration.api.problems import FieldProblem, Problem, named_settings
from wan_orchestration.errors import BadInput
from wan_orchestration.families.animate.family import CLIPS, REPLACEMENT_CLIPS
from wan_orchestration.files import remove
from wan_orchestration.formats import A_PICTURE, A_VIDEO, recognise
from wan_orchestration.jobs.folder import JOB_FILE
from wan_orchestration.jobs.inputs import RAW
from wan_orchestration.settings.characters import MOST_CHARACTERS

READ_TIMEOUT_SECONDS = 60

MAX_JSON_BYTES = 2**20
MAX_FIELD_BYTES = 2**16
WRITE_BYTES = 2**20
MAX_PARTS = 100
MAX_NAME_LENGTH = 100

PICTURES = ("reference", *(f"reference_{number}" for number in range(2, MOST_CHARACTERS + 1)))
"""Form fields of the characters' pictures, in order."""

FILES = {**{name: name for name in ("driving", *PICTURES)}, **CLIPS, **REPLACEMENT_CLIPS}
"""File names in the job folder by form field. Raw inputs get a suffix that fits their content."""

LISTS = {"lora"}
TEXTS = {"name", "prompt", "prompt_ref", "negative_prompt", "webhook_url"}
"""Fields that are plain text. Others are parsed as JSON: numbers, booleans, objects."""

ABANDONED_SECONDS = 24 * 3600
"""An upload folder that is older was left behind by a killed server."""


@dataclass
class Form:
    """A received form: its files are in `folder`, its other fields in `fields`."""

    folder: Path
    fields: dict[str, Any] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)
    client_names: dict[str, str] = field(default_factory=dict)
    """The client's file names, by field."""
    digest: str = ""
    """SHA-256 of the files' fields and contents."""

    def label(self, name: str) -> str:
        """A file's field and the client's name for it: `driving (dance.mp4)`."""
        return f"{name} ({self.client_names[name]})" if self.client_names.get(name) else name

    def to_problem(self, error: BadInput) -> Problem:
        """An error about the job folder, with form fields in place of the server's files."""
        text = str(error)
        for name, path in self.files.items():
            text = text.replace(str(path), self.label(name))
        for prefix in (f"{self.folder / JOB_FILE}: generate.", f"{self.folder / JOB_FILE}: "):
            text = text.replace(prefix, "")
        text = without_paths(text.replace(str(self.folder), "the form"))
        fields = [
            FieldProblem(field=name, detail=text.removeprefix(f"{name} ").replace(f"({client})", client, 1))
            for name, client in self.client_names.items()
            if text.startswith(f"{self.label(name)}: ")
        ]
        return Problem(422, text, fields or named_settings(text))


async def read(request: Request, limit: int) -> bytes:
    """The body of a request.

    Problem 413: more than `limit` bytes; 408: the client stopped sending; 400: the client closed the connection.
    """
    body = bytearray()
    async for chunk in stream(request, limit):
        body += chunk
    return bytes(body)


async def stream(request: Request, limit: int) -> AsyncIterator[bytes]:
    """The body of a request, in chunks; raises the same problems as `read`."""
    too_large = Problem(413, f"the request's body is larger than the limit of {limit / 1e6:g} MB")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise too_large
    received, chunks = 0, aiter(request.stream())
    while True:
        try:
            async with asyncio.timeout(READ_TIMEOUT_SECONDS):
                chunk = await anext(chunks, None)
        except TimeoutError:
            raise Problem(408, f"nothing was sent for {READ_TIMEOUT_SECONDS} s") from None
        except ClientDisconnect:
            raise Problem(400, "the connection was closed before the body was complete") from None
        if not chunk:
            return
        received += len(chunk)
        if received > limit:
            raise too_large
        yield chunk


async def receive(request: Request, root: Path, limit: int) -> Form:
    """Write a form's files to a new hidden folder in `root`. The caller renames the folder into place, or removes it.

    Problem 422: not a form, or a form with unknown parts; others as for `read`.
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
    """Feeds a form from the parser's events: the beginning, the data and the end of each part."""

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
            with PushMultipartParser(options.get("boundary", ""), max_segment_count=MAX_PARTS, strict=True) as parser:
                async for chunk in stream(request, limit):
                    for event in parser.parse(chunk):
                        if event is None:
                            await self.end_part()
                        elif isinstance(event, bytes | bytearray):
                            await self.add_data(event)
                        else:
                            self.begin_part(event.name or "", event.filename)
        except ParserLimitReached as error:
            raise Problem(413, f"the form is too large: {error}") from None
        except MultipartError as error:
            raise Problem(422, f"not a complete multipart/form-data form: {error}") from None
        finally:
            if self.file:
                self.file.close()
        self.form.digest = hashlib.sha256(repr(sorted(self.digests.items())).encode()).hexdigest()

    def begin_part(self, name: str, filename: str | None) -> None:
        self.name = name
        if name in self.form.files or (name in self.form.fields and name not in LISTS):
            raise _field_error(name, "found twice, expected once")
        if name in FILES:
            if filename is None:
                raise _field_error(name, "found text, expected a file")
            self.form.files[name] = path = self.form.folder / FILES[name]
            self.form.client_names[name] = _base_name(filename)
            self.file, self.digest = path.open("xb"), hashlib.sha256()
        elif filename is not None:
            raise _field_error(name, f"found a file; fields for files are {', '.join(FILES)}")
        elif name not in Upload.model_fields:
            raise _field_error(name, "unknown field")

    async def add_data(self, data: bytes | bytearray) -> None:
        self.buffer += data
        if self.file is None and len(self.buffer) > MAX_FIELD_BYTES:
            raise _field_error(self.name, f"more than {MAX_FIELD_BYTES} bytes")
        if self.file and len(self.buffer) >= WRITE_BYTES:
            await self.flush()

    async def flush(self) -> None:
        assert self.file is not None
        data, self.buffer = bytes(self.buffer), bytearray()
        self.digest.update(data)
        await run_in_threadpool(self.file.write, data)

    async def end_part(self) -> None:
        if self.file:
            await self.flush()
            self.file.close()
            self.file = None
            self.digests[self.name] = self.digest.hexdigest()
            return
        try:
            text = self.buffer.decode()
        except UnicodeDecodeError:
            raise _field_error(self.name, "not UTF-8") from None
        self.buffer = bytearray()
        if self.name in LISTS:
            self.form.fields.setdefault(self.name, []).append(text)
        elif text:
            # An empty field was not filled in.
            self.form.fields[self.name] = text if self.name in TEXTS else _parse(text)


def _base_name(filename: str) -> str:
    """The last part of a path of any operating system, in printable characters."""
    base = filename.replace("\\", "/").rpartition("/")[2]
    return "".join(letter for letter in base if letter.isprintable())[:MAX_NAME_LENGTH]


def _parse(text: str) -> Any:
    """The JSON value of a field, or the text itself if it is no JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _field_error(name: str, detail: str) -> Problem:
    shown = name[:80]
    return Problem(422, f"{shown!r}: {detail}", [FieldProblem(field=shown, detail=detail)])


def make_job_folder(form: Form, settings: Upload) -> None:
    """Turn a form's folder into a job folder: name the files, write `job.yaml`. Does not check that it can be used.

    BadInput: a file is not of the kind that its field expects.
    """
    name_files(form)
    generate = settings.generate_given()
    characters = characters_of({name: form.files[name] for name in PICTURES if name in form.files}, settings.characters)
    content = {
        "model": generate.pop("model", None),
        "mode": generate.pop("mode", "replace" if characters else None),
        "characters": characters,
        "priority": settings.priority,
        "review": settings.review,
        "preprocess": settings.preprocess_given(),
        "generate": generate,
    }
    content = {name: value for name, value in content.items() if value}
    (form.folder / JOB_FILE).write_text(yaml.safe_dump(content, allow_unicode=True, sort_keys=False), "utf-8")


def name_files(form: Form) -> None:
    """Give videos and pictures the suffix of their content. BadInput: a file is of another kind than its field."""
    for name, path in form.files.items():
        if name == "driving" or name in PICTURES:
            form.files[name] = path.rename(path.with_name(f"{name}.{_suffix(form, name)}"))


def characters_of(pictures: Mapping[str, Path], persons: Sequence[str] | None) -> list[dict[str, str]]:
    """`characters` of `job.yaml`, from the pictures by form field and whom each replaces. Empty: a single picture.

    BadInput: there is not one person for each picture.
    """
    expected = PICTURES[: len(persons)] if persons else PICTURES[:1]
    if persons and expected != (*pictures,):
        raise BadInput(
            f"characters: found {len(persons)} people, and as pictures {' and '.join(pictures) or 'none'}; "
            f"expected {' and '.join(expected)}"
        )
    if not persons and len(pictures) > 1:
        raise BadInput("characters: missing; expected whom each of the pictures replaces")
    return [{"picture": path.name, "person": person} for path, person in zip(pictures.values(), persons or ())]


def _suffix(form: Form, name: str) -> str:
    """The suffix by a file's first bytes, else by the client's file name. BadInput: not a file of the expected kind."""
    found, suffix = recognise(form.files[name])
    client_suffix, suffixes = Path(form.client_names[name]).suffix[1:].lower(), RAW[name.partition("_")[0]]
    if suffix is None and client_suffix in suffixes:
        return client_suffix
    if not suffix or suffix not in suffixes:
        raise BadInput(f"{form.files[name]}: found {found}, expected {A_VIDEO if name == 'driving' else A_PICTURE}")
    return suffix


def remove_abandoned(root: Path) -> None:
    """Remove the unfinished uploads of servers that were killed."""
    for folder in root.glob(".upload-*"):
        if time.time() - folder.stat().st_mtime > ABANDONED_SECONDS:
            shutil.rmtree(folder, ignore_errors=True)
