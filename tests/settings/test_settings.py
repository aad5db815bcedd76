"""Settings as they come in, and as they are written down."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from tasks import make_task

from wan_orchestration.jobs.folder import Job
from wan_orchestration.protocol.messages import AnyRequest, PreprocessRequest, Request, Result
from wan_orchestration.settings.generate import GenerateSettings
from wan_orchestration.settings.preprocess import PreprocessSettings
from wan_orchestration.settings.variables import with_variables

VARIABLES = {
    "WAN_DEFAULT_SAMPLING_STEPS": "3",
    "WAN_DEFAULT_PRESET": "draft",
    "WAN_DEFAULT_LORA": '["style.safetensors"]',
    "WAN_PREPROCESS_FPS": "12",
}
NOW = datetime(2026, 11, 27, tzinfo=UTC)


@pytest.fixture
def variables(monkeypatch):
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)


def test_variables_fill_what_a_job_leaves_out(make_job, variables):
    job = Job.open(make_job(yaml="generate: {shift: 4}"))
    settings = job.generate_settings(seed=7)
    assert type(settings) is GenerateSettings
    assert (settings.sampling_steps, settings.lora) == (3, ["style.safetensors"])
    # The preset fills what neither the job nor a variable sets.
    assert (settings.shift, settings.seed, settings.sample_solver, settings.step_cache) == (4, 7, "unipc", 2)
    assert job.preprocess_settings().fps == with_variables(PreprocessSettings, {}).fps == 12


def test_variables_do_not_change_a_result(variables):
    """Not even that of a version with fewer settings."""
    old = f'{{"job_id": "a", "status": "succeeded", "created_at": "{NOW.isoformat()}", "settings": {{"seed": 7}}}}'
    settings = Result.model_validate_json(old).settings
    assert settings == GenerateSettings(seed=7)
    assert (settings.sampling_steps, settings.preset, settings.lora) == (20, "exact", [])


def test_requests_arrive_as_they_were_sent(monkeypatch):
    generate = make_task("a", Path("o"), GenerateSettings(seed=7))
    sent = [
        Request(snapshot=Path("weights"), tasks=[generate]),
        PreprocessRequest(
            job_id="a",
            driving=Path("d.mp4"),
            reference=Path("r.png"),
            output=Path("o"),
            settings=PreprocessSettings(start=1),
            snapshot=None,
            models_root=Path("m"),
        ),
    ]
    texts = [message.model_dump_json() for message in sent]
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    assert [AnyRequest.validate_json(text) for text in texts] == sent
    assert [AnyRequest.validate_json(text).model_dump_json() for text in texts] == texts
