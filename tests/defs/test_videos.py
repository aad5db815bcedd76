"""The video asset's settings and failures. Nothing is launched: see tests/launch, and tests/cli for whole runs."""

import base64
import io
import subprocess
import sys
from datetime import UTC, datetime

import dagster as dg
import numpy as np
import pytest
from dagster._core.errors import DagsterExecutionInterruptedError
from PIL import Image
from pydantic import ValidationError

from wan_orchestration.defs import failures
from wan_orchestration.defs.config import GenerateConfig
from wan_orchestration.defs.failures import failures_in_words
from wan_orchestration.defs.metadata import poster
from wan_orchestration.defs.videos.metadata import video_metadata
from wan_orchestration.protocol.messages import Result
from wan_orchestration.settings.environment import environment
from wan_orchestration.settings.generate import GenerateSettings
from wan_orchestration.video.stills import write_poster
from wan_orchestration.weights.hub import DownloadError


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights") / "random"
    command = [sys.executable, "-m", "benchmarks.random_snapshot", str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    return folder


def generate(**config):
    return {"generated_video": {"config": config}}


def test_the_launchpad_offers_every_setting():
    fields = GenerateConfig.to_fields_dict()
    assert set(fields) == set(GenerateSettings.model_fields)
    assert all(not field.is_required and field.description for field in fields.values())


def test_only_filled_in_fields_are_given():
    filled = {"sample_solver": "unipc", "seed": 0, "lora": ["a.safetensors:0.5"], "use_relighting_lora": False}
    assert GenerateConfig(**filled).given() == filled
    with pytest.raises(ValidationError):
        GenerateConfig(**filled | {"sample_solver": "heun"})


def test_notices_are_shown():
    result = Result(job_id="job", status="succeeded", created_at=datetime.now(UTC), notices=["the face is short"])
    assert [row.data["what"] for row in video_metadata(result)["warnings"].records] == ["the face is short"]
    assert "warnings" not in video_metadata(result.model_copy(update={"notices": []}))


def test_the_model_is_shown():
    result = Result(job_id="x", status="succeeded", created_at=datetime.now(UTC), settings=GenerateSettings())
    first = video_metadata(result)
    assert first["model"] == "animate" and "variant" not in first
    second = video_metadata(result.model_copy(update={"settings": GenerateSettings(model="animate-2", variant="base")}))
    assert (second["model"], second["variant"]) == ("animate-2", "base")


def test_bad_input_is_not_retried(make_job, materialize, reason, data_root, monkeypatch, weights):
    make_job("job")
    assert "WAN_CHECKPOINT_DIR" in reason(materialize("generated_video", key="job"))

    monkeypatch.setenv("WAN_CHECKPOINT_DIR", str(weights))
    environment.cache_clear()
    result = materialize("generated_video", key="job", config=generate(clip_len=6))
    assert "clip_len" in reason(result) and "4n+1" in reason(result)
    assert not (data_root / "clips").exists()
    result = materialize("generated_video", key="job", config=generate(mode="replace"))
    assert "src_bg.mp4" in reason(result)
    assert not (data_root / "videos").exists()


def test_a_poster_is_small_whatever_it_shows(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (480, 832, 3), dtype=np.uint8)
    write_poster(tmp_path / "poster.jpg", noise)
    text = poster(tmp_path / "poster.jpg").value
    assert len(text) < 20_000
    jpeg = base64.b64decode(text.removeprefix("![poster](data:image/jpeg;base64,").removesuffix(")"))
    with Image.open(io.BytesIO(jpeg)) as image:
        assert image.size == (240, 138)


def test_passing_errors_are_retried_and_cancels_are_not(instance, monkeypatch):
    monkeypatch.setattr(failures, "WAIT_SECONDS", 0)
    tries = []

    @dg.op
    def flaky(context):
        tries.append(context.retry_number)
        with failures_in_words(context, DownloadError):
            raise DownloadError("the worker ended with exit code 9")

    @dg.op
    def cancelled(context):
        tries.append(context.retry_number)
        with failures_in_words(context, DownloadError):
            raise DagsterExecutionInterruptedError

    @dg.job
    def flaky_job():
        flaky()

    @dg.job
    def cancelled_job():
        cancelled()

    result = flaky_job.execute_in_process(instance=instance, raise_on_error=False)
    assert tries == [0, 1, 2]
    (failed,) = [event for event in result.all_events if event.is_step_failure]
    assert failed.step_failure_data.user_failure_data.description == "the worker ended with exit code 9"

    tries.clear()
    cancelled_job.execute_in_process(instance=instance, raise_on_error=False)
    assert tries == [0]
