"""Dagster's UI in a real browser: what somebody sees who opens it. With UI_SCREENSHOTS=DIR it leaves pictures of it.

UI_SCREENSHOTS=docs uv run pytest -m heavy tests/test_ui.py
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import browser  # noqa: F401
from deployment import ROOT, Deployment

pytestmark = pytest.mark.heavy

DEMO = ROOT / "data" / "jobs" / "demo"
SETTINGS = {"WAN_DEFAULT_SAMPLING_STEPS": "6", "WAN_DEFAULT_CLIP_LEN": "17", "WAN_DROP_SETTLE_SECONDS": "1"}


@pytest.fixture(scope="module")
def deployment(tmp_path_factory) -> Iterator[Deployment]:
    """One job's video has been made, and another job has failed."""
    weights = ROOT / "data" / "models" / "wan-animate-mini"
    deployment = Deployment(tmp_path_factory.mktemp("ui"), WAN_CHECKPOINT_DIR=str(weights), **SETTINGS)
    try:
        deployment.start()
        shutil.copytree(DEMO, deployment.jobs / "broken")
        video = deployment.jobs / "broken" / "driving.mp4"
        video.write_bytes(video.read_bytes()[:9000])
        deployment.wait(lambda: [run for run in deployment.runs("broken") if run.is_finished], 120)
        shutil.copytree(DEMO, deployment.jobs / "dance")
        deployment.wait(lambda: [run for run in deployment.runs("dance") if run.is_finished], 300)
        yield deployment
    finally:
        deployment.stop()


@pytest.fixture
def page(browser) -> Iterator:  # noqa: F811
    page = browser.new_page(viewport={"width": 1500, "height": 1000})
    page.set_default_timeout(30_000)
    yield page
    page.close()


def shot(page, name: str) -> None:
    if folder := os.environ.get("UI_SCREENSHOTS"):
        page.wait_for_timeout(1500)  # until what moves has come to rest
        page.screenshot(path=str(Path(folder) / f"ui-{name}.png"))


def test_the_graph_shows_the_stages(deployment, page):
    page.set_viewport_size({"width": 1700, "height": 1050})
    page.goto(f"{deployment.url}/locations/wan_orchestration/asset-groups/animation")
    page.get_by_text("job_catalog").first.wait_for()
    for asset in ("job_inputs", "job_settings", "weight_snapshot", "preprocessed_clips", "generated_video"):
        assert page.get_by_text(asset).first.is_visible()
    page.get_by_text("50% filled (1 failed)").first.wait_for()
    page.get_by_text("10 / 10 Passed").wait_for()
    shot(page, "graph")


def test_a_partition_shows_its_video(deployment, page):
    page.goto(f"{deployment.url}/assets/generated_video?view=partitions&partition=dance")
    page.get_by_text("segments_table").wait_for()
    for fact in ("seconds_per_step", "colour_drift", "seam", "identity", "placement"):
        assert page.get_by_text(fact, exact=True).first.is_visible()
    assert page.get_by_role("link", name="animate/jobs/dance/media").is_visible()
    page.get_by_text("[Show Markdown]").first.click()
    preview = page.get_by_role("img", name="preview")
    preview.wait_for()
    assert preview.evaluate("image => image.complete && image.naturalWidth") > 300, "reference, pose and result"
    assert preview.get_attribute("src").startswith("data:image/webp")
    assert len(preview.get_attribute("src")) <= 50_000
    shot(page, "asset")


def test_the_clips_show_a_contact_sheet(deployment, page):
    page.goto(f"{deployment.url}/assets/preprocessed_clips?view=partitions&partition=dance")
    page.get_by_text("[Show Markdown]").first.click()
    sheet = page.get_by_role("img", name="contact sheet")
    sheet.wait_for()
    assert sheet.evaluate("image => image.naturalWidth") > 400
    shot(page, "clips")


def test_the_checks_say_what_they_measured(deployment, page):
    page.goto(f"{deployment.url}/assets/generated_video?view=checks&checkDetail=colour_drift")
    page.get_by_text("Checks (10)").wait_for()
    page.get_by_text("largest distance of a segment's colours from the first segment's").first.wait_for()
    page.get_by_text("Plots").wait_for()
    shot(page, "checks")


def test_a_failed_run_says_why(deployment, page):
    (run,) = deployment.runs("broken")
    page.goto(f"{deployment.url}/runs/{run.run_id}")
    page.get_by_text("RUN_FAILURE").wait_for()
    failure = page.get_by_text("driving.mp4: truncated").last
    failure.wait_for()
    said = failure.inner_text().splitlines()
    assert said[0].startswith("dagster._core.definitions.events.Failure: ") and "copy or export it again" in said[0]
    shot(page, "failed")
