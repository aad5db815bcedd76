"""Answers match /openapi.json for any request."""

import subprocess
import sys
from pathlib import Path

import httpx
from api_server import JOBS, free_port, serving
from fastapi.routing import APIRoute

from wan_orchestration.api import routes
from wan_orchestration.api.app import create_app
from wan_orchestration.api.models import Submission
from wan_orchestration.settings.generate import GenerateSettings
from wan_orchestration.settings.service import ApiSettings

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


def test_any_request_is_answered_as_described(project, add_job, finish):
    """Runs schemathesis against a real server with a queued and a finished job."""
    with serving(project, free_port()) as url:
        for key in ("waits", "done"):
            httpx.post(url + JOBS, json={"src_root_path": f"data/jobs/{add_job(key)}"}, timeout=60).raise_for_status()
        finish("done")
        command = [Path(sys.executable).with_name("schemathesis"), "run", f"{url}/openapi.json"]
        command += ["--checks", CHECKS, "--phases", "examples,coverage,fuzzing", "--max-examples", "6"]
        command += [
            "--exclude-path-regex",
            "events$",
            "--seed",
            "1",
            "--request-timeout",
            "30",
            "--generation-database",
            "none",
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        print(done.stdout)
        assert done.returncode == 0, done.stdout
        # Any job may have been purged.
        assert httpx.get(f"{url}{JOBS}").is_success
    assert not [path for path in (project / "data" / "jobs").iterdir() if path.name.startswith(".upload")]


def test_the_schema_is_complete(project):
    app = create_app(ApiSettings())
    schema = app.openapi()
    described = [operation for methods in schema["paths"].values() for operation in methods.values()]
    every = [route for router in (routes.jobs, routes.files, routes.state) for route in router.routes]
    assert len(described) == sum(isinstance(route, APIRoute) and route.include_in_schema for route in every)
    for operation in described:
        assert operation["summary"] and operation["tags"]
    fields = schema["components"]["schemas"]["Submission"]["properties"]
    assert set(GenerateSettings.model_fields) | {"src_root_path", "preprocess", "priority"} <= set(fields)
    assert all(field.get("description") for field in fields.values())
    assert Submission.model_json_schema()["examples"]
    assert "ProblemDetails" in schema["components"]["schemas"]


def test_models_say_what_applies_to_them(api):
    answer = api.get("/animate/models").json()
    first, second = answer["families"]
    assert answer["auto"] == first["name"] == "animate"
    assert {"variant", "prompt_ref"} <= {*first["foreign"]} and first["prompt_example"] is None
    assert {"mode", "face_strength"} <= {*second["foreign"]} and "retarget" in second["foreign_preprocess"]
    base = {one["name"]: one for one in second["variants"]}["base"]
    assert (base["defaults"]["sampling_steps"], base["presets"]["fast"]) == (40, {"sampling_steps": 20})
    assert "mode" not in base["defaults"] and base["installed"] is False
