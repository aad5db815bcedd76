"""The ASGI application: routes, page, error responses and access control."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema
from starlette.middleware.cors import CORSMiddleware

from wan_orchestration.api import problems, routes
from wan_orchestration.api.access import Access
from wan_orchestration.api.models import Characters, NewClips, Start, Submission, Upload
from wan_orchestration.api.services import Services, api_settings
from wan_orchestration.settings.service import ApiSettings

PAGE = Path(__file__).parent / "page"

DESCRIPTION = """Character animation with Wan2.2-Animate and Wan-Animate-2: a picture of a character and a video of a
person moving become a video of the character performing that motion."""


def create_app(api: ApiSettings | None = None) -> FastAPI:
    """The application. Settings come from `WAN_API_*` by default."""
    api = api or api_settings()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with Services.running(api) as app.state.services:
            yield

    app = FastAPI(
        title="wan-orchestration",
        version=version("wan-orchestration"),
        description=DESCRIPTION,
        lifespan=lifespan,
        # FastAPI's documentation pages load scripts from other sites. The schema is at /openapi.json.
        docs_url=None,
        redoc_url=None,
    )
    problems.install(app)
    for router in (routes.jobs, routes.files, routes.state):
        app.include_router(router)
    app.mount("/page", StaticFiles(directory=PAGE), name="page")

    @app.get("/", include_in_schema=False)
    def page() -> FileResponse:
        return FileResponse(PAGE / "index.html", headers={"cache-control": "no-cache"})

    if api.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=api.cors_origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["authorization", "content-type", "idempotency-key", "range"],
            expose_headers=["content-range", "retry-after"],
        )
    app.add_middleware(Access, api=api)
    app.openapi = lambda: app.openapi_schema or _openapi(app)
    return app


def _openapi(app: FastAPI) -> dict[str, Any]:
    """FastAPI's schema, plus the models of errors and of the request bodies that the routes parse themselves."""
    schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    models = (Submission, Upload, Characters, NewClips, Start, routes.SignIn, problems.ProblemDetails)
    kinds: list[tuple[type[BaseModel], JsonSchemaMode]] = [(model, "validation") for model in models]
    _, definitions = models_json_schema(kinds, ref_template="#/components/schemas/{model}")
    schema["components"]["schemas"] |= definitions["$defs"]
    schema["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    schema["security"] = [{}, {"token": []}]
    app.openapi_schema = schema
    return schema
