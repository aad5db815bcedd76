"""Error responses as problem details (RFC 9457)."""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from wan_orchestration.api.paths import without_paths
from wan_orchestration.errors import BadInput
from wan_orchestration.settings.generate import GenerateSettings
from wan_orchestration.settings.preprocess import PreprocessSettings

MEDIA_TYPE = "application/problem+json"


class FieldProblem(BaseModel):
    field: str = Field(description="Name of the field, dots between levels.", examples=["sampling_steps"])
    detail: str = Field(description="What was found and what is expected.")


class ProblemDetails(BaseModel):
    """An error in the form of RFC 9457."""

    type: str = Field(default="about:blank", description="Always about:blank: the status tells the kind of error.")
    title: str = Field(examples=["Unprocessable Content"])
    status: int = Field(examples=[422])
    detail: str | None = Field(default=None, description="What was wrong with this request, and what to do about it.")
    errors: list[FieldProblem] | None = Field(default=None, description="The fields with errors, if there are any.")


class Problem(HTTPException):
    """Raised by a route: the request is answered with problem details."""

    def __init__(
        self,
        status: int,
        detail: str,
        errors: Sequence[FieldProblem] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, detail, dict(headers or {}))
        self.errors = errors


def to_response(problem: Problem) -> JSONResponse:
    """The HTTP response for a problem."""
    details = ProblemDetails(
        title=HTTPStatus(problem.status_code).phrase,
        status=problem.status_code,
        detail=problem.detail,
        errors=list(problem.errors) or None,
    )
    content = details.model_dump(exclude_none=True)
    return JSONResponse(content, problem.status_code, problem.headers, media_type=MEDIA_TYPE)


def install(app: FastAPI) -> None:
    """Answer every error of an app with problem details."""

    @app.exception_handler(HTTPException)
    async def _(request: Request, error: HTTPException) -> JSONResponse:
        return to_response(
            error if isinstance(error, Problem) else Problem(error.status_code, error.detail, (), error.headers)
        )

    @app.exception_handler(BadInput)
    async def _(request: Request, error: BadInput) -> JSONResponse:
        text = without_paths(str(error))
        return to_response(Problem(422, text, named_settings(text)))

    @app.exception_handler(RequestValidationError)
    async def _(request: Request, error: RequestValidationError) -> JSONResponse:
        return to_response(Problem(422, "some parameters cannot be used", field_problems(error.errors())))

    @app.exception_handler(Exception)
    async def _(request: Request, error: Exception) -> JSONResponse:
        return to_response(Problem(500, "internal error; see the server's log"))


def field_problems(errors: Sequence[Mapping[str, Any]]) -> list[FieldProblem]:
    """pydantic's errors by field, without the part of the request that held the field (body, path, query)."""
    return [
        FieldProblem(
            field=".".join(str(part) for part in error["loc"] if part not in ("body", "path", "query", "header")),
            detail=error["msg"].removeprefix("Value error, ").replace("Input should be", "expected"),
        )
        for error in errors
    ]


def named_settings(text: str) -> list[FieldProblem]:
    """The settings that the lines of an error's text begin with; none unless each line names one."""
    problems = []
    for line in text.splitlines():
        name, _, detail = line.partition(": ")
        if (path := _path(name)) is None:
            return []
        problems.append(FieldProblem(field=path, detail=detail))
    return problems


def _path(name: str) -> str | None:
    """The field of a request for a setting; None if there is no such setting."""
    if name in GenerateSettings.model_fields:
        return name
    field = name.removeprefix("preprocess.")
    return f"preprocess.{field}" if field in PreprocessSettings.model_fields else None


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Problem details for these statuses, as the `responses` of a route in OpenAPI."""
    schema = {"$ref": "#/components/schemas/ProblemDetails"}
    return {
        status: {"description": HTTPStatus(status).phrase, "content": {MEDIA_TYPE: {"schema": schema}}}
        for status in sorted(statuses)
    }
