"""`wan-animate` from a shell, and what Dagster shows afterwards. One demo run serves all tests that need a run."""

import contextlib
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import pytest
from hub_server import animate_2_layout, write_download
from PIL import Image

from mini.jobs import write_clips
from mini.scene import scene
from wan_orchestration.cli import main as cli
from wan_orchestration.cli import run as shell
from wan_orchestration.definitions import definitions
from wan_orchestration.defs.clips import checks as clips_checks
from wan_orchestration.defs.jobs.assets import observe
from wan_orchestration.defs.jobs.versions import JobVersion
from wan_orchestration.defs.videos import checks as video_checks
from wan_orchestration.jobs.folder import Job
from wan_orchestration.settings.environment import environment

ROOT = Path(__file__).parents[2]
FRAMES = 5


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Iterator[Path]:
    """A project folder with a small demo job, as the working directory."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "data" / "jobs").mkdir(parents=True)
    write_clips(folder / "data" / "jobs" / "demo", scene(seed=1, frames=FRAMES, size=(64, 64)))
    shutil.copytree(ROOT / "data" / "models" / shell.DEMO_WEIGHTS, folder / "data" / "models" / shell.DEMO_WEIGHTS)
    (folder / "dagster_home").mkdir()
    shutil.copy(ROOT / "dagster_home" / "dagster.yaml", folder / "dagster_home")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in [name for name in os.environ if name.startswith(("WAN_", "DAGSTER_"))]:
            patch.delenv(name)
        environment.cache_clear()
        yield folder
    environment.cache_clear()


@pytest.fixture(scope="module")
def demo_output(project) -> str:
    """What `wan-animate demo` prints."""
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as output:
        patch.setattr(shell, "DEMO_SETTINGS", {"sampling_steps": 2, "clip_len": 5})
        code = shell.demo([])
    print(output.getvalue())
    assert code == 0
    return output.getvalue()


@pytest.fixture(scope="module")
def instance(project, demo_output) -> dg.DagsterInstance:
    return dg.DagsterInstance.from_config(str(project / "dagster_home"))


@pytest.fixture(scope="module")
def status(project, demo_output) -> Iterator[Callable[[str], tuple[str, list[str]]]]:
    """Asks a webserver for an asset's stale status for the demo job, and for the assets that caused it."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    arguments = [sys.executable, "-m", "dagster_webserver", "-h", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(
        [*arguments, "-w", str(ROOT / "workspace.yaml")],
        env={**os.environ, "DAGSTER_HOME": str(project / "dagster_home")},
    )

    def ask(asset: str) -> tuple[str, list[str]]:
        query = """query($path: [String!]!, $job: String) { assetNodeOrError(assetKey: {path: $path}) {
            ... on AssetNode { staleStatus(partition: $job) staleCauses(partition: $job) { key { path } } } } }"""
        body = {"query": query, "variables": {"path": [asset], "job": None if asset == "weight_snapshot" else "demo"}}
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/graphql", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            node = json.load(answer)["data"]["assetNodeOrError"]
        return node["staleStatus"], [cause["key"]["path"][0] for cause in node["staleCauses"]]

    try:
        for _ in range(120):
            with contextlib.suppress(OSError):
                ask("weight_snapshot")
                break
            assert server.poll() is None
            time.sleep(0.5)
        yield ask
    finally:
        server.terminate()
        server.wait()


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "wan_orchestration.cli.main", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_demo_makes_the_video_and_prints_where_it_is(project, demo_output):
    assert f"The video: {project / 'data' / 'videos' / 'demo' / 'video.mp4'}" in demo_output
    assert f"{FRAMES} frames of 64x64" in demo_output
    assert re.search(
        r"generated_video - demo: (starting|loading the weights|encoding|segment 1 of 1, step)", demo_output
    )
    assert "uv run dagster asset materialize -m wan_orchestration.definitions" in demo_output
    assert re.search(r'DAGSTER_HOME="\$PWD"/dagster_home WAN_CHECKPOINT_DIR=\S+ uv run dagster dev', demo_output)
    assert "mini" in demo_output and "14B" in demo_output
    names = sorted(path.name for path in (project / "data" / "videos" / "demo").iterdir())
    assert names == ["poster.jpg", "preview.webp", "result.json", "video.mp4"]


def test_metadata_of_the_video(instance, project):
    (record,) = instance.fetch_materializations(dg.AssetKey("generated_video"), limit=1).records
    metadata = record.asset_materialization.metadata
    assert record.partition_key == "demo"
    assert metadata["frames"].value == FRAMES and metadata["size"].value == "64x64"
    assert metadata["video"].path == str(project / "data" / "videos" / "demo" / "video.mp4")
    assert metadata["settings"].data["sampling_steps"] == 2
    assert metadata["snapshot"].data["layout"] == "original"
    assert metadata["peak_memory_gb"].value > 0
    assert {"seconds_load", "seconds_encode", "seconds_denoise", "seconds_decode"} <= set(metadata)
    assert metadata["poster"].md_str.startswith("![poster](data:image/jpeg;base64,")
    assert metadata["preview"].md_str.startswith("![preview](data:image/webp;base64,")
    assert len(metadata["preview"].md_str) < 50_000
    (row,) = metadata["segments_table"].records
    assert row.data["frames"] == FRAMES and row.data["seconds_per_step"] > 0 and row.data["colour_drift"] == 0
    assert metadata["play"].url == "http://127.0.0.1:8000/animate/jobs/demo/media"
    assert {"colour_drift", "seam", "identity"} <= set(metadata)


def test_every_check_was_made(instance):
    """The video of two denoising steps passes the integrity checks; its quality does not matter here."""
    evaluations = {
        entry.dagster_event.event_specific_data.check_name: entry.dagster_event.event_specific_data
        for run in instance.get_runs()
        for entry in instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION)
    }
    assert set(evaluations) == {*video_checks.CHECKS, *clips_checks.CHECKS}
    errors = {name for name, found in evaluations.items() if found.severity == dg.AssetCheckSeverity.ERROR}
    assert errors == {"decodable", "length", "size", "not_blank", "finite"}
    assert all(evaluations[name].passed for name in errors)
    assert evaluations["pose"].description.startswith("not measured: the clips come without")


def test_a_video_is_stale_once_its_inputs_settings_or_weights_change(instance, project, status, monkeypatch):
    """After a change the quick assets are made again; the video is not."""
    job = project / "data" / "jobs" / "demo"
    repository = definitions().get_repository_def()

    def observe_job():
        """Does what the drop_folder sensor does."""
        for observation in observe(Job.open(job), JobVersion.of(Job.open(job))):
            instance.report_runless_asset_event(observation)

    def materialize(asset: str, key: str | None, **config: str):
        keys, ops = [dg.AssetKey(asset)], {asset: {"config": config}}
        run = repository.get_implicit_job_def_for_assets(keys)
        assert run.execute_in_process(
            instance=instance, partition_key=key, asset_selection=keys, run_config={"ops": ops}
        ).success

    assets = ("weight_snapshot", "preprocessed_clips", "generated_video")
    assert [status(asset) for asset in assets] == [("FRESH", [])] * 3
    observe_job()
    assert [status(asset) for asset in assets] == [("FRESH", [])] * 3

    weights = project / "data" / "models" / shell.DEMO_WEIGHTS
    monkeypatch.setenv("WAN_CHECKPOINT_DIR", str(weights))
    environment.cache_clear()
    materialize("weight_snapshot", None)
    materialize("preprocessed_clips", "demo")
    assert status("generated_video") == ("FRESH", []), "the same was made again"
    write_download(project / "data" / "models" / "Wan-AI--Wan2.2-Animate-2-14B" / "master", animate_2_layout())
    materialize("weight_snapshot", None, model="animate-2", variant="base")
    assert status("generated_video") == ("FRESH", []), "another model family was installed"
    os.utime(weights / "config.json", (0, 0))
    materialize("weight_snapshot", None)
    assert status("generated_video") == ("STALE", ["weight_snapshot"])

    (job / "job.yaml").write_text("generate: {seed: 7}")
    observe_job()
    assert status("preprocessed_clips") == ("STALE", ["weight_snapshot"]), (
        "the snapshot's networks may have found the keypoints"
    )
    assert status("generated_video") == ("STALE", ["job_settings", "weight_snapshot"])

    Image.new("RGB", (64, 64), "red").save(job / "src_ref.png")
    observe_job()
    assert status("preprocessed_clips") == ("STALE", ["job_inputs", "weight_snapshot"])
    materialize("preprocessed_clips", "demo")
    assert status("preprocessed_clips") == ("FRESH", [])
    assert status("generated_video") == ("STALE", ["job_settings", "preprocessed_clips", "weight_snapshot"])


@pytest.mark.parametrize(
    "arguments, variable, words",
    [
        (["run", "nobody"], None, "no such job folder"),
        (["run", "../jobs"], None, "job key '../jobs'"),
        (["run", "broken"], None, "sampling_stepps"),
        (["run", "demo"], "DAGSTER_HOME", "dagster.yaml: no such file"),
        (["demo"], "WAN_DATA_ROOT", "no such job folder"),
    ],
)
def test_errors_are_words(project, tmp_path, monkeypatch, capsys, arguments, variable, words):
    broken = project / "data" / "jobs" / "broken"
    broken.mkdir(exist_ok=True)
    (broken / "job.yaml").write_text("generate: {sampling_stepps: 2}")
    if variable:
        monkeypatch.setenv(variable, str(tmp_path))
    environment.cache_clear()
    assert cli.main(arguments) == 1
    assert words in capsys.readouterr().err


def test_a_failed_run_gives_its_reason(project):
    job = project / "data" / "jobs" / "cut"
    write_clips(job, scene(seed=2, frames=FRAMES))
    (job / "src_pose.mp4").write_bytes((job / "src_pose.mp4").read_bytes()[:1000])
    done = command("run", "cut", WAN_CHECKPOINT_DIR=str(project / "data" / "models" / shell.DEMO_WEIGHTS))
    assert done.returncode == 1
    assert done.stderr.startswith("error: preprocessed_clips: ") and "src_pose.mp4" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


def test_help_is_quick():
    start = time.perf_counter()
    done = command("--help")
    assert done.returncode == 0 and "demo" in done.stdout and "infer" in done.stdout
    assert time.perf_counter() - start < 2
