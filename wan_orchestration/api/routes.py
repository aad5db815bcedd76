"""The routes of the API."""

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi import Path as PathParameter
from fastapi.responses import FileResponse, StreamingResponse
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.concurrency import run_in_threadpool

from wan_orchestration.api import access, uploads
from wan_orchestration.api.clips import ClipsFile
from wan_orchestration.api.families import families
from wan_orchestration.api.models import (
    FINISHED,
    ClipsInfo,
    Families,
    Health,
    JobInfo,
    JobList,
    NewClips,
    Readiness,
    Start,
    Status,
    Submission,
)
from wan_orchestration.api.problems import Problem, field_problems, responses
from wan_orchestration.api.services import Services
from wan_orchestration.files import remove
from wan_orchestration.jobs.folder import KEY
from wan_orchestration.settings.characters import MOST_CHARACTERS

M = TypeVar("M", bound=BaseModel)

HEARTBEAT_SECONDS = 120
"""After so long without a heartbeat, a daemon counts as stopped."""
STOP_SECONDS = 20
"""How long purging waits for a cancelled job to stop."""
QUEUE_DAEMON = "QUEUED_RUN_COORDINATOR"

JobId = Annotated[str, PathParameter(pattern=f"^{KEY.pattern}$", description="The job_id that submitting returned.")]
InputName = Annotated[str, PathParameter(pattern="^(driving|reference|reference_[2-8])$")]
IdempotencyKey = Annotated[
    str | None,
    Header(
        pattern=r"^[\x21-\x7e]{1,200}$",
        description="Chosen by the client, for example a UUID. A repeated request with the same key gets the answer "
        "of the first and starts no second run.",
    ),
]

RANGES: dict[int | str, dict[str, Any]] = {
    206: {"description": "The requested part"},
    304: {"description": "Unchanged"},
    400: {"description": "A Range that cannot be understood", "content": {"text/plain": {}}},
    416: {"description": "A Range beyond the end", "content": {"text/plain": {}}},
}


def _services(request: Request) -> Services:
    return request.app.state.services


Injected = Annotated[Services, Depends(_services)]

jobs = APIRouter(prefix="/animate/jobs", tags=["jobs"], responses=responses(401, 403, 422))
files = APIRouter(prefix="/animate/jobs", tags=["files"], responses=responses(401, 403, 404, 422))
state = APIRouter(tags=["server"])


def _schema(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _body(model: str) -> dict[str, Any]:
    """A JSON body that the route parses itself, in OpenAPI. It may be empty."""
    return {"requestBody": {"content": {"application/json": {"schema": _schema(model)}}}}


FORM = {
    "type": "object",
    "description": "A picture and a driving video, or ready clips. A list is a repeated field; `preprocess` is JSON.",
    "properties": {name: {"type": "string", "format": "binary"} for name in uploads.FILES},
    "allOf": [_schema("Upload")],
}


@jobs.post(
    "",
    status_code=202,
    summary="Make a video",
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": _schema("Submission")},
                "multipart/form-data": {"schema": FORM},
            },
        }
    },
    responses=responses(400, 408, 409, 413, 415, 429),
)
async def submit(request: Request, services: Injected, idempotency_key: IdempotencyKey = None) -> JobInfo:
    """Makes the video of a job folder on the server (JSON), or of files in the request (a form).

    Requests that cannot work are refused here. A job that has not ended is not started again: the same request gets
    that job as the answer, a different one gets 409.
    """
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type == "multipart/form-data":
        form = await uploads.receive(request, services.env.jobs_root, services.api.max_upload_mb * 10**6)
        try:
            return await run_in_threadpool(services.submissions.upload, form, idempotency_key)
        finally:
            # Does nothing after the folder was renamed to a job folder.
            await run_in_threadpool(remove, form.folder)
    if content_type and content_type != "application/json":
        raise Problem(415, f"found {content_type[:80]}, expected application/json or multipart/form-data")
    submission = _parse(Submission, await uploads.read(request, uploads.MAX_JSON_BYTES))
    return await run_in_threadpool(services.submissions.folder, submission, idempotency_key)


@jobs.get("", summary="List jobs")
def list_jobs(
    services: Injected,
    status: Annotated[Status | None, Query(description="Only jobs with this status.")] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    before: Annotated[int | None, Query(ge=1, lt=2**63, description="Part of `next` of the previous page.")] = None,
) -> JobList:
    """Jobs with the newest runs first, whoever started them."""
    return services.jobs.page(status, limit, before)


@jobs.get("/{job_id}", summary="Look at a job", responses=responses(404))
def get_job(services: Injected, job_id: JobId) -> JobInfo:
    return services.jobs.get(job_id)


@jobs.delete(
    "/{job_id}",
    summary="Cancel a job, or remove it",
    response_model=JobInfo,
    responses={**responses(404, 409), 204: {"description": "Removed"}},
)
async def cancel(
    services: Injected,
    job_id: JobId,
    purge: Annotated[
        bool, Query(description="Cancel it, then remove its results, and its inputs if they were uploaded.")
    ] = False,
) -> JobInfo | Response:
    """A job that has ended stays as it is. A running job may need some seconds to stop."""
    job, started = await run_in_threadpool(services.jobs.cancel, job_id), time.monotonic()
    if not purge:
        return job
    while job.status not in FINISHED and time.monotonic() - started < STOP_SECONDS:
        await asyncio.sleep(0.5)
        job = await run_in_threadpool(services.jobs.get, job_id)
    await run_in_threadpool(services.jobs.purge, job_id)
    return Response(status_code=204)


@jobs.get("/{job_id}/clips", summary="Look at a job's clips", responses=responses(404))
def get_clips(services: Injected, job_id: JobId) -> ClipsInfo:
    """The clips that the video is made of: what was found in the driving video, checks, files, and an estimate.

    While clips are being made, it shows a preview of the first two seconds as soon as there is one.
    """
    return services.reviews.clips(job_id)


@jobs.post(
    "/{job_id}/clips",
    status_code=202,
    summary="Make a job's clips again",
    openapi_extra=_body("NewClips"),
    responses=responses(400, 404, 408, 409, 413, 429),
)
async def make_clips(
    request: Request, services: Injected, job_id: JobId, idempotency_key: IdempotencyKey = None
) -> JobInfo:
    """Makes the clips with other settings and stops: the job is then `ready`. 409 if a run of it has not ended."""
    new_clips = _parse(NewClips, await uploads.read(request, uploads.MAX_JSON_BYTES))
    return await run_in_threadpool(services.reviews.make_again, job_id, new_clips, idempotency_key)


@jobs.post(
    "/{job_id}/characters",
    status_code=202,
    summary="Give people of the driving video pictures",
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {
                    "schema": {
                        "type": "object",
                        "properties": {name: {"type": "string", "format": "binary"} for name in uploads.PICTURES},
                        "allOf": [_schema("Characters")],
                    }
                }
            },
        }
    },
    responses=responses(400, 404, 408, 409, 413, 415, 429),
)
async def set_characters(
    request: Request, services: Injected, job_id: JobId, idempotency_key: IdempotencyKey = None
) -> JobInfo:
    """Replaces several people of an uploaded job, each by the character of a picture (mode replace).

    Makes the clips again and stops: the job is then `ready`. 409 if a run of it has not ended.
    """
    if not request.headers.get("content-type", "").strip().lower().startswith("multipart/form-data"):
        raise Problem(415, "expected multipart/form-data")
    form = await uploads.receive(request, services.env.jobs_root, services.api.max_upload_mb * 10**6)
    try:
        return await run_in_threadpool(services.reviews.set_characters, job_id, form, idempotency_key)
    finally:
        # Does nothing after the folder took the place of the job's.
        await run_in_threadpool(remove, form.folder)


@jobs.post(
    "/{job_id}/start",
    status_code=202,
    summary="Make the video of clips that were looked at",
    openapi_extra=_body("Start"),
    responses=responses(400, 404, 408, 409, 413, 429),
)
async def start(request: Request, services: Injected, job_id: JobId, idempotency_key: IdempotencyKey = None) -> JobInfo:
    """Makes the video of a job that is `ready`, of its clips as they are. Settings win over those of the submission."""
    settings = _parse(Start, await uploads.read(request, uploads.MAX_JSON_BYTES))
    return await run_in_threadpool(services.reviews.start, job_id, settings, idempotency_key)


@jobs.get(
    "/{job_id}/events",
    summary="Follow a job",
    response_class=StreamingResponse,
    responses={
        **responses(404, 429),
        200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}, "description": "`job` events"},
    },
)
async def events(services: Injected, job_id: JobId) -> StreamingResponse:
    """Server-sent events: `job`, with the job as JSON, after each change.

    The stream ends when the job has ended, or is `ready`: then nothing happens until somebody acts.
    """
    stream = await services.events.open(job_id)
    return StreamingResponse(stream, media_type="text/event-stream", headers={"cache-control": "no-store"})


@jobs.get(
    "/{job_id}/log",
    summary="Read a job's log",
    response_class=StreamingResponse,
    responses={**responses(404), 200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
def log(services: Injected, job_id: JobId) -> StreamingResponse:
    """The events of its newest run in Dagster, one line each."""
    lines: Iterator[str] = services.jobs.log(job_id)
    return StreamingResponse(lines, media_type="text/plain; charset=utf-8", headers={"cache-control": "no-store"})


Name = Literal["media", "poster", "preview"]
OUTPUTS: dict[Name, str] = {"media": "video.mp4", "poster": "poster.jpg", "preview": "preview.webp"}
TYPES = {
    "mp4": "video/mp4",
    "mov": "video/mp4",
    "m4v": "video/mp4",
    "webm": "video/webm",
    "mkv": "video/x-matroska",
    "avi": "video/x-msvideo",
    "mpg": "video/mpeg",
    "mpeg": "video/mpeg",
    "ts": "video/mp2t",
    "mts": "video/mp2t",
    "m2ts": "video/mp2t",
    "gif": "image/gif",
    "png": "image/png",
    "jpg": "image/jpeg",
    "jpeg": "image/jpeg",
    "webp": "image/webp",
    "bmp": "image/bmp",
    "heic": "image/heic",
    "heif": "image/heif",
    "avif": "image/avif",
    "tif": "image/tiff",
    "tiff": "image/tiff",
}


def _binary(*types: str) -> dict[int | str, dict[str, Any]]:
    schema = {"schema": {"type": "string", "format": "binary"}}
    return {200: {"description": "The file", "content": dict.fromkeys(types, schema)}, **RANGES}


@files.head("/{job_id}/{output}", include_in_schema=False)
@files.get(
    "/{job_id}/{output}",
    summary="Fetch the result",
    response_class=FileResponse,
    responses={**responses(409), **_binary("video/mp4", "image/jpeg", "image/webp")},
)
def output(request: Request, services: Injected, job_id: JobId, output: Name) -> Response:
    """The video, a still image of it, or a small animation, after the job has succeeded. Supports Range."""
    filename = f"{job_id}.mp4" if output == "media" else None
    return _file(request, lambda: services.jobs.output(job_id, OUTPUTS[output]), filename)


@files.head("/{job_id}/inputs/{name}", include_in_schema=False)
@files.get(
    "/{job_id}/inputs/{name}",
    summary="Fetch an input",
    response_class=FileResponse,
    responses=_binary(*sorted(set(TYPES.values()))),
)
def input_(request: Request, services: Injected, job_id: JobId, name: InputName) -> Response:
    """The picture of a character, or the driving video; for ready clips, the pose clip."""
    return _file(request, lambda: services.jobs.input(job_id, name), None)


@files.head("/{job_id}/clips/{name}", include_in_schema=False)
@files.get(
    "/{job_id}/clips/{name}",
    summary="Fetch a file of the clips",
    response_class=FileResponse,
    responses=_binary("video/mp4", "image/jpeg"),
)
def clips_file(
    request: Request,
    services: Injected,
    job_id: JobId,
    name: ClipsFile,
    character: Annotated[int, Query(ge=1, le=MOST_CHARACTERS, description="Which of several characters.")] = 1,
) -> Response:
    """A clip, or a picture of what was found, in a format that browsers show. Supports Range."""
    return _file(request, lambda: services.reviews.file(job_id, name, character), None)


def _file(request: Request, find: Callable[[], Path], filename: str | None) -> Response:
    """The file that `find` returns. Problem 404: it was removed or replaced meanwhile."""
    try:
        path = find()
        stat = path.stat()
    except FileNotFoundError:
        raise Problem(404, "the file was removed or replaced meanwhile; try again") from None
    response = FileResponse(
        path,
        media_type=TYPES[path.suffix[1:].lower()],
        filename=filename,
        stat_result=stat,
        content_disposition_type="inline",
        headers={"cache-control": "private, no-cache"},
    )
    etag = response.headers["etag"]
    if etag in [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]:
        return Response(status_code=304, headers={"etag": etag, "cache-control": "private, no-cache"})
    return response


@state.get("/animate/models", summary="List the model families", responses=responses(401, 403, 422))
def list_families(services: Injected) -> Families:
    """Which model families there are, what `model: auto` means here, and which settings apply to each."""
    return families(services.env)


@state.get("/healthz", summary="Check that the server answers")
def health() -> Health:
    return Health()


@state.get(
    "/readyz",
    summary="Check that jobs can be accepted",
    responses={**responses(401, 403), 503: {"model": Readiness, "description": "They cannot be accepted"}},
)
def ready(services: Injected, response: Response) -> Readiness:
    """Without a daemon, jobs are accepted too; they wait for one."""
    checks = {"instance": "ok", "jobs_folder": "ok", "daemon": "ok"}
    try:
        heartbeat = services.instance.get_daemon_heartbeats().get(QUEUE_DAEMON)
        services.jobs.count_queued()
        if heartbeat is None or time.time() - heartbeat.timestamp > HEARTBEAT_SECONDS:
            checks["daemon"] = "no daemon: jobs wait until one runs; start dagster dev"
    except Exception as error:
        checks["instance"] = f"Dagster's instance cannot be used: {type(error).__name__}"
    if not services.jobs_folder_is_writable():
        checks["jobs_folder"] = "the jobs folder is not writable"
    usable = checks["instance"] == checks["jobs_folder"] == "ok"
    response.status_code = 200 if usable else 503
    return Readiness(status="ready" if usable else "not ready", checks=checks)


@state.get(
    "/metrics",
    summary="Metrics for Prometheus",
    response_class=Response,
    responses={**responses(401, 403), 200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
def metrics(services: Injected) -> Response:
    return Response(generate_latest(services.registry), media_type=CONTENT_TYPE_LATEST)


class SignIn(BaseModel):
    model_config = ConfigDict(extra="forbid")

    token: str = Field(max_length=1000, description="The server's token.")


@state.post(
    "/session",
    status_code=204,
    summary="Sign the page in",
    openapi_extra={"requestBody": {"required": True, "content": {"application/json": {"schema": _schema("SignIn")}}}},
    responses=responses(401, 403, 413, 422),
)
async def sign_in(request: Request, services: Injected) -> Response:
    """Sets the page's session cookie. Programs send the token instead."""
    body = _parse(SignIn, await uploads.read(request, 10_000))
    if services.api.token is None or not access.is_token(services.api, body.token):
        raise Problem(401, "this is not the server's token")
    response = Response(status_code=204)
    response.set_cookie(
        access.COOKIE,
        access.session(services.api.token.get_secret_value()),
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )
    return response


@state.delete("/session", status_code=204, summary="Sign the page out", responses=responses(403))
def sign_out() -> Response:
    response = Response(status_code=204)
    response.delete_cookie(access.COOKIE)
    return response


def _parse(model: type[M], body: bytes) -> M:
    try:
        return model.model_validate_json(body or b"{}")
    except ValidationError as error:
        raise Problem(422, "the request cannot be used", field_problems(error.errors())) from None
