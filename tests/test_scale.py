"""A thousand jobs in a real `dagster dev`, with an engine that takes no time. Minutes: run with -m heavy."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from browser import browser  # noqa: F401
from deployment import Deployment

pytestmark = pytest.mark.heavy

JOBS, MADE = 1000, 200
TICK_SECONDS, PAGE_SECONDS = 2.0, 3.0
TICKS = """{
  sensorOrError(sensorSelector: {
    repositoryName: "__repository__", repositoryLocationName: "wan_orchestration", sensorName: "drop_folder"
  }) { ... on Sensor { sensorState { ticks(limit: 5000) { status timestamp endTimestamp } } } }
}"""


@pytest.fixture(scope="module")
def deployment(tmp_path_factory) -> Iterator[Deployment]:
    from benchmarks import random_snapshot

    folder, tests = tmp_path_factory.mktemp("scale"), Path(__file__).parent
    random_snapshot.write(folder / "weights", random_snapshot.Widths(layers=5))
    workspace = folder / "workspace.yaml"
    workspace.write_text(
        "load_from:\n- python_module: {module_name: fast_definitions, location_name: wan_orchestration, "
        f"working_directory: {tests}}}\n"
    )
    deployment = Deployment(
        folder,
        WAN_CHECKPOINT_DIR=str(folder / "weights"),
        WAN_DROP_SETTLE_SECONDS="1",
        PYTHONPATH=str(tests),
    )
    deployment.workspace = workspace
    # Two cores: one for the runs, whose start is all work, one for Dagster.
    settings = deployment.home / "dagster.yaml"
    settings.write_text(settings.read_text().replace("max_concurrent_runs: 4", "max_concurrent_runs: 1"))
    try:
        yield deployment
    finally:
        deployment.stop()


def seconds_until(page, path: str, text: str) -> float:
    """How long a page takes to show something, from the click on."""
    started = time.monotonic()
    page.goto(path)
    page.get_by_text(text).first.wait_for()
    return time.monotonic() - started


def test_a_thousand_jobs(deployment, make_job, browser):  # noqa: F811
    template = make_job("template")
    for number in range(JOBS):
        shutil.copytree(template, deployment.jobs / f"job-{number:04d}")
    deployment.start()
    dropped = time.monotonic()
    deployment.wait(lambda: len(deployment.instance.get_dynamic_partitions("jobs")) == JOBS, 300)
    print(f"All are partitions after {time.monotonic() - dropped:.1f} s.")

    def made() -> int:
        return len(deployment.instance.get_materialized_partitions(dg.AssetKey("generated_video")))

    page = browser.new_page()
    page.set_default_timeout(30_000)
    url = f"{deployment.url}/assets/generated_video?view=partitions"
    page.goto(url)  # the first visit fetches the program
    deployment.wait(lambda: made() > MADE, 900)
    pages = [seconds_until(page, url, f"{JOBS:,} Partitions") for _ in range(3)]
    print(f"{MADE} videos are there after {time.monotonic() - dropped:.0f} s. The page takes {max(pages):.1f} s.")
    runs = deployment.instance.get_runs()
    assert not [run for run in runs if run.is_finished and not run.is_success]
    jobs = [tag for run in runs for tag in run.tags if tag.startswith("job/")]
    assert len(jobs) == len(set(jobs)), "each is run once"

    ticks = deployment.ask(TICKS)["sensorOrError"]["sensorState"]["ticks"]
    took = [tick["endTimestamp"] - tick["timestamp"] for tick in ticks if tick["endTimestamp"]]
    print(f"{len(took)} ticks, the longest {max(took):.2f} s, the median {sorted(took)[len(took) // 2]:.2f} s.")
    assert not [tick for tick in ticks if tick["status"] == "FAILURE"]
    assert max(took) < TICK_SECONDS
    assert max(pages) < PAGE_SECONDS
