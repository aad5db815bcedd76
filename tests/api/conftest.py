"""One API and one real instance for each test file; each test uses jobs of its own."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import numpy as np
import pytest
from api_server import running
from media import moving_frames, write_video
from PIL import Image
from starlette.testclient import TestClient

from wan_orchestration.settings.environment import environment
from wan_orchestration.settings.service import ApiSettings
from wan_orchestration.video.writer import write_lossless

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Iterator[Path]:
    """A project folder with its own instance, as the working directory.

    It is in memory if possible, because SQLite waits for the disk dozens of times in a submission.
    """
    memory = Path("/dev/shm")
    if os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 2**28:
        folder = Path(tempfile.mkdtemp(prefix="wan-", dir=memory))
    else:
        folder = tmp_path_factory.mktemp("project")
    (folder / "data" / "jobs").mkdir(parents=True)
    (folder / "dagster_home").mkdir()
    shutil.copy(ROOT / "dagster_home" / "dagster.yaml", folder / "dagster_home")
    shutil.copy(ROOT / "workspace.yaml", folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in [name for name in os.environ if name.startswith(("WAN_", "DAGSTER_"))]:
            patch.delenv(name)
        patch.setenv("DAGSTER_HOME", str(folder / "dagster_home"))
        environment.cache_clear()
        yield folder
    environment.cache_clear()
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def instance(project) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.from_config(str(project / "dagster_home")) as instance:
        yield instance


@pytest.fixture(scope="module")
def api(project) -> Iterator[TestClient]:
    """The API with small limits, called in this process."""
    with running(ApiSettings(max_upload_mb=1, max_video_seconds=5, max_video_pixels=1024 * 1024)) as client:
        yield client


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    """Ready clips, 5 frames of 64x64."""
    folder = tmp_path_factory.mktemp("clips")
    write_lossless(folder / "src_pose.mp4", moving_frames(5, 64, 64, 1), 30)
    write_lossless(folder / "src_face.mp4", moving_frames(5, 512, 512, 2), 30)
    Image.fromarray(moving_frames(1, 80, 60, 3)[0]).save(folder / "src_ref.png")
    return folder


@pytest.fixture(scope="module")
def add_job(project, clips) -> Callable[..., str]:
    """Adds a job folder of ready clips; returns its key."""

    def add(key: str, yaml: str | None = None) -> str:
        shutil.copytree(clips, project / "data" / "jobs" / key)
        if yaml:
            (project / "data" / "jobs" / key / "job.yaml").write_text(yaml)
        return key

    return add


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> dict[str, bytes]:
    """A driving video of 1 s and a picture, as bytes."""
    folder = tmp_path_factory.mktemp("raw")
    write_video(folder / "driving.mp4", moving_frames(10, 64, 96, 1), 10)
    Image.fromarray(moving_frames(1, 80, 60, 3)[0]).save(folder / "reference.png")
    return {name.partition(".")[0]: (folder / name).read_bytes() for name in ("driving.mp4", "reference.png")}


@pytest.fixture(scope="module")
def report_event(instance) -> Callable[..., dg.DagsterRun]:
    """Reports an event of a job's newest run to Dagster, as the run's process does."""

    def report(key: str, event: dg.DagsterEventType) -> dg.DagsterRun:
        (run,) = instance.get_runs(dg.RunsFilter(tags={"dagster/partition": key}), limit=1)
        instance.report_dagster_event(dg.DagsterEvent(event.value, run.job_name), run.run_id)
        return run

    return report


@pytest.fixture(scope="module")
def finish(project, report_event) -> Callable[[str], Path]:
    """Makes a job's run succeed, and adds its video."""

    def end(key: str) -> Path:
        folder = project / "data" / "videos" / key
        folder.mkdir(parents=True)
        write_video(folder / "video.mp4", moving_frames(5, 64, 64, 1))
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "poster.jpg")
        report_event(key, dg.DagsterEventType.RUN_START)
        report_event(key, dg.DagsterEventType.RUN_SUCCESS)
        return folder

    return end
