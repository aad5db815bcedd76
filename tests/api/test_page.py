"""The page in a real browser. With PAGE_SCREENSHOTS=DIR, the tests write screenshots."""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import yaml
from api_server import JOBS, free_port, serving
from browser import browser  # noqa: F401
from PIL import Image
from test_daemon import daemon, settings  # noqa: F401
from two_people import write_two_people

from wan_orchestration.api.jobs import UPLOADED
from wan_orchestration.protocol.messages import PreprocessResult
from wan_orchestration.settings.preprocess import PreprocessSettings
from wan_orchestration.video.reader import FrameReader
from wan_orchestration.video.writer import write_lossless

pytestmark = pytest.mark.heavy

ROOT = Path(__file__).parents[2]
MINI = ROOT / "data" / "models" / "wan-animate-mini"
MINUTES = 60_000
FRAMES = 17


@pytest.fixture
def page(browser) -> Iterator:  # noqa: F811
    """A new page. The test fails on any error in it, including violations of the security policy."""
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    page.set_default_timeout(30_000)
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on(
        "console",
        lambda message: errors.append(f"{message.text} {message.location['url']}") if message.type == "error" else None,
    )
    yield page
    page.close()
    assert not [error for error in errors if "net::ERR" not in error and "status of 4" not in error], errors


@pytest.fixture(scope="module")
def files(shared, tmp_path_factory) -> tuple[Path, Path]:
    """A picture, and a short video of a person moving."""
    folder = tmp_path_factory.mktemp("files")
    source = shared / "examples" / "animate"
    with FrameReader(source / "video.mp4") as reader:
        frames = [frame[::2, ::2] for frame in reader.read(range(FRAMES))]
    from media import write_video

    height, width = (side // 2 * 2 for side in frames[0].shape[:2])
    driving = write_video(folder / "driving.mp4", [frame[:height, :width].copy() for frame in frames], 25)
    with Image.open(source / "image.jpeg") as image:
        image.thumbnail((512, 512))
        image.convert("RGB").save(folder / "reference.jpg")
    return folder / "reference.jpg", driving


def shot(page, name: str, part: str | None = None) -> None:
    """A screenshot of the page, or of a part of it."""
    if folder := os.environ.get("PAGE_SCREENSHOTS"):
        path = str(Path(folder) / f"page-{name}.png")
        if part:
            page.locator(part).screenshot(path=path)
        else:
            page.screenshot(path=path, full_page=True)


def choose(page, files: tuple[Path, Path], name: str) -> None:
    for part, path in zip(("reference", "driving"), files):
        page.set_input_files(f"#{part}", str(path))
    page.get_by_text("More settings").click()
    page.get_by_label("Name").fill(name)


def test_from_uploading_files_to_playing_the_video(project, page, files, monkeypatch):
    monkeypatch.setenv("WAN_PREPROCESS_RESOLUTION_AREA", "65536")
    with daemon(project), serving(project, free_port()) as url:
        page.goto(url)
        page.get_by_text("No jobs yet.").wait_for()
        page.get_by_role("button", name="Make the video").click()
        assert "Choose a picture" in page.locator("#new-video .error").inner_text()

        choose(page, files, "dance")
        shot(page, "chosen")
        page.get_by_role("button", name="Make the video").click()
        page.get_by_role("heading", name="dance").wait_for()
        job = page.locator("#job")
        job.locator(".badge.running").wait_for(timeout=2 * MINUTES)
        job.get_by_text("step").wait_for(timeout=5 * MINUTES)
        shot(page, "running")
        job.locator(".badge.succeeded").wait_for(timeout=5 * MINUTES)

        video = page.get_by_label("Result", exact=True)
        video.evaluate("video => new Promise(ended => { video.onended = ended; video.muted = true; video.play() })")
        assert video.evaluate("video => video.ended && video.videoWidth > 0 && video.currentTime > 0.3")
        page.get_by_role("button", name="Play together").click()
        driving = page.get_by_label("Driving video", exact=True)
        assert driving.evaluate("video => video.readyState > 0")
        assert page.get_by_label("Character", exact=True).evaluate("image => image.naturalWidth > 0")
        with page.expect_download() as download:
            page.get_by_role("link", name="Download").click()
        assert download.value.suggested_filename == "dance.mp4"
        assert download.value.path().read_bytes() == (project / "data/videos/dance/video.mp4").read_bytes()
        page.get_by_text("Log", exact=True).click()
        page.locator("pre").get_by_text("generated_video").first.wait_for()
        page.get_by_text("Log", exact=True).click()
        page.reload()
        page.get_by_role("heading", name="dance").wait_for()
        page.once("dialog", lambda dialog: dialog.accept())
        page.get_by_role("button", name="Delete").click()
        page.get_by_text("No jobs yet.").wait_for()
        assert not (project / "data" / "jobs" / "dance").exists()


def test_a_job_is_cancelled_by_keyboard(project, page, files):
    with serving(project, free_port()) as url:
        page.goto(url)
        choose(page, files, "waits")
        page.get_by_role("button", name="Make the video").press("Enter")
        page.locator("#job .badge.queued").wait_for()
        page.get_by_role("button", name="Cancel").focus()
        page.keyboard.press("Enter")
        page.locator("#job .badge.cancelled").wait_for()
        page.locator("#jobs .badge.cancelled").wait_for()
        page.locator("#filter").select_option("succeeded")
        page.get_by_text("No jobs yet.").wait_for()


def test_a_refusal_names_the_field(project, page, files):
    with serving(project, free_port()) as url:
        page.goto(url)
        choose(page, files, "refused")
        page.set_input_files("#driving", str(files[0]))
        page.get_by_role("button", name="Make the video").click()
        error = page.locator("#new-video .error")
        error.get_by_text("driving").wait_for()
        assert "expected a video" in error.inner_text()


def test_signing_in_and_out(project, page):
    with serving(project, free_port(), WAN_API_TOKEN="a-token-of-some-length") as url:
        page.goto(url)
        page.get_by_label("The server’s token").fill("wrong")
        page.get_by_role("button", name="Sign in").click()
        page.get_by_text("not the server's token").wait_for()
        page.get_by_label("The server’s token").fill("a-token-of-some-length")
        page.keyboard.press("Enter")
        page.get_by_role("heading", name="New video").wait_for()
        assert page.evaluate("document.cookie") == "", "no script can read it"
        page.reload()
        page.get_by_role("heading", name="New video").wait_for()
        page.get_by_role("button", name="Sign out").click()
        page.get_by_role("heading", name="Sign in").wait_for()
        assert page.evaluate(f"fetch('{JOBS}').then(answer => answer.status)") == 401


def test_the_demo_on_screens_light_and_dark_large_and_small(project, page, monkeypatch):
    for name, value in {"CHECKPOINT_DIR": MINI, "DEFAULT_SAMPLING_STEPS": 6, "DEFAULT_CLIP_LEN": 17}.items():
        monkeypatch.setenv(f"WAN_{name}", str(value))
    shutil.copytree(ROOT / "data" / "jobs" / "demo", project / "data" / "jobs" / "demo")
    with daemon(project), serving(project, free_port()) as url:
        httpx.post(url + JOBS, json={"src_root_path": "data/jobs/demo"}, timeout=60).raise_for_status()
        page.goto(f"{url}/#demo")
        page.locator("#job .badge.succeeded").wait_for(timeout=5 * MINUTES)
        page.get_by_label("Result", exact=True).evaluate("video => { video.currentTime = 1 }")
        page.get_by_label("Driving video", exact=True).evaluate("video => { video.currentTime = 1 }")
        page.wait_for_timeout(1000)
        for name, scheme, width in (("light", "light", 1200), ("dark", "dark", 1200), ("phone", "light", 390)):
            page.emulate_media(color_scheme=scheme)
            page.set_viewport_size({"width": width, "height": 900})
            shot(page, name)
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "no horizontal scrolling"


@pytest.fixture
def two_people(project, monkeypatch) -> Callable[..., None]:
    """Writes a job of two people, in the size of the mini weights, and asks a server for its clips."""
    for name, value in {"CHECKPOINT_DIR": MINI, "DEFAULT_SAMPLING_STEPS": 6, "DEFAULT_CLIP_LEN": 17}.items():
        monkeypatch.setenv(f"WAN_{name}", str(value))

    def submit(url: str, key: str, mode: str = "animate") -> None:
        write_two_people(project / "data" / "jobs" / key, 100, mode)
        body = {"src_root_path": f"data/jobs/{key}", "review": True}
        httpx.post(url + JOBS, json=body, timeout=60).raise_for_status()

    return submit


def used_settings(project: Path, key: str) -> PreprocessSettings:
    result = PreprocessResult.model_validate_json((project / "data/clips" / key / "preprocess.json").read_bytes())
    return result.settings


def test_looking_first_at_two_people(project, page, two_people, tmp_path):
    """The page's server believes that there is a card, and knows no earlier run."""
    program = tmp_path / "nvidia-smi"
    program.write_text('#!/bin/sh\ncase "$1" in *name*) echo GPU-1, NVIDIA L4, 23034;; *) echo 0, GPU-1;; esac\n')
    program.chmod(0o755)
    believed = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "WAN_CACHE_ROOT": str(tmp_path / "cache")}
    with daemon(project), serving(project, free_port(), WAN_PRICE_PER_HOUR="3", **believed) as url:
        two_people(url, "duo")
        page.goto(f"{url}/#duo")
        badge = page.locator("#job .badge")
        badge.get_by_text("ready").wait_for(timeout=2 * MINUTES)
        assert page.get_by_role("button", name="Person 1").get_attribute("aria-pressed") == "true"
        motion = page.get_by_label("Motion", exact=True)
        motion.evaluate("video => new Promise(shown => video.requestVideoFrameCallback(shown))")
        page.get_by_role("button", name="Pause").click()
        page.get_by_label("Moment").fill("30")
        for name in ("Motion", "Face"):
            page.wait_for_function(
                "video => Math.abs(video.currentTime - 1) < 0.05",
                arg=page.get_by_label(name, exact=True).element_handle(),
            )

        page.get_by_role("button", name="Person 2").click()
        page.locator(".part").scroll_into_view_if_needed()
        end = page.get_by_role("slider", name="End").bounding_box()
        strip = page.locator(".strip").bounding_box()
        assert end and strip
        grip = end["x"] + end["width"] / 2, end["y"] + end["height"] / 2
        page.mouse.move(*grip)
        page.mouse.down()
        page.mouse.move(grip[0] - strip["width"] / 2, grip[1], steps=5)
        page.mouse.up()
        page.get_by_text("0:00.0 to 0:01.7").wait_for()
        shot(page, "look-changed")
        page.get_by_role("button", name="Make the clips again").click()
        badge.get_by_text("running").wait_for(timeout=MINUTES)
        badge.get_by_text("ready").wait_for(timeout=2 * MINUTES)
        page.get_by_text("Person 2 is followed").wait_for()
        used = used_settings(project, "duo")
        assert used.person == "index:2"
        assert used.start == 0
        assert used.end == pytest.approx(100 / 30 / 2, abs=0.05)

        page.locator(".look .passed").wait_for()
        page.get_by_text("Estimate: from the planner").wait_for(timeout=MINUTES)
        assert re.search(r"about \d+ s; (under )?0\.0\d", page.locator("#job .go").inner_text())
        for name, scheme, width in (("look", "light", 1200), ("look-dark", "dark", 1200), ("look-phone", "light", 390)):
            page.emulate_media(color_scheme=scheme)
            page.set_viewport_size({"width": width, "height": 900})
            page.wait_for_function(
                "() => [...document.querySelectorAll('.look video')].every(video => video.readyState > 2)"
            )
            shot(page, name, "#job")
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "no horizontal scrolling"
        page.locator("#job").get_by_role("button", name="Make the video").click()
        badge.get_by_text("succeeded").wait_for(timeout=5 * MINUTES)
        assert page.locator(".look").is_hidden()
        assert page.get_by_label("Result", exact=True).evaluate("video => video.readyState >= 0")
        with FrameReader(project / "data/videos/duo/video.mp4") as reader:
            assert reader.info.frames == pytest.approx(50, abs=2)


def test_marks_for_the_mask_and_a_picture_for_a_second_person(project, page, two_people):
    """The job's mask holds both people. A mark takes the person away who is not replaced; then both are replaced."""
    with daemon(project), serving(project, free_port()) as url:
        two_people(url, "mask", "replace")
        page.goto(f"{url}/#mask")
        badge = page.locator("#job .badge")
        badge.get_by_text("ready").wait_for(timeout=2 * MINUTES)
        second = page.get_by_role("button", name="Person 2", exact=True).bounding_box()
        frame = page.locator(".frame").bounding_box()
        assert second and frame
        assert mask_at(project, "mask").any()
        page.get_by_label("Mask: leave out").check()
        centre = second["x"] + second["width"] / 2 - frame["x"], second["y"] + second["height"] / 2 - frame["y"]
        page.locator(".layer").click(position={"x": centre[0], "y": centre[1]})
        page.get_by_label("Mask: box").check()
        page.locator(".layer").focus()
        for key in ("Enter", "ArrowRight", "ArrowDown", "Enter"):
            page.keyboard.press(key)
        assert page.locator(".mark").count() == 2
        page.get_by_role("button", name="Undo the last mark").click()
        assert page.locator(".mark").count() == 1
        shot(page, "look-mask", "#job")
        page.get_by_role("button", name="Make the clips again").click()
        badge.get_by_text("running").wait_for(timeout=MINUTES)
        badge.get_by_text("ready").wait_for(timeout=2 * MINUTES)
        assert not mask_at(project, "mask").any(), "the mask still holds the second person"

        folder = project / "data/jobs/mask"
        (folder / UPLOADED).touch()
        picture = (folder / "reference.png").read_bytes()
        page.get_by_label("Picture for person 2").set_input_files(str(folder / "reference.png"))
        shot(page, "look-pictures", "#job")
        page.get_by_role("button", name="Make the clips again").click()
        page.get_by_text("cannot tell people apart").wait_for()
        (folder / "mask.mp4").unlink()
        page.get_by_role("button", name="Make the clips again").click()
        # Dagster may start a run that is cancelled while it leaves the queue.
        page.locator("#job .words").get_by_text("frame").wait_for(timeout=MINUTES)
        page.get_by_role("button", name="Cancel").click()
        badge.get_by_text("cancelled").wait_for(timeout=MINUTES)
        assert httpx.get(f"{url}{JOBS}/mask").json()["characters"] == ["index:1", "index:2"]
        assert httpx.get(f"{url}{JOBS}/mask/inputs/reference_2").content == picture

        # The page keeps the words for people that it would not use itself.
        content = yaml.safe_load((folder / "job.yaml").read_text())
        for one, person in zip(content["characters"], persons := ["largest", "point:0.75,0.5"]):
            one["person"] = person
        (folder / "job.yaml").write_text(yaml.safe_dump(content))
        page.get_by_role("button", name="Make the clips again").click()
        badge.get_by_text("running").wait_for(timeout=MINUTES)
        badge.get_by_text("ready").wait_for(timeout=2 * MINUTES)
        page.locator("#job").get_by_role("button", name="Make the video").wait_for()
        assert page.get_by_role("button", name="Make the clips again").is_hidden()
        assert page.get_by_role("button", name="Remove the picture of person 2").is_visible()
        assert httpx.get(f"{url}{JOBS}/mask").json()["characters"] == persons

        # A mark for the second character.
        page.get_by_label("Character 2").check()
        face = page.get_by_label("Face", exact=True)
        assert "character=2" in face.get_attribute("src")
        page.wait_for_function("video => video.readyState > 0", arg=face.element_handle())
        page.get_by_label("Mask: add").check()
        assert page.locator(".mark").count() == 0
        page.locator(".layer").click(position={"x": centre[0], "y": centre[1]})
        page.route("**/clips", lambda route: route.abort())
        with page.expect_request("**/clips") as sent:
            page.get_by_role("button", name="Make the clips again").click()
        first, second = sent.value.post_data_json["preprocess"]["mask_hints"]
        assert first.startswith("not:") and second.startswith("point:") and second.endswith("#2")
        page.get_by_role("button", name="Undo the changes").click()
        page.locator("#job").get_by_role("button", name="Make the video").wait_for()
        page.get_by_label("Character 1").check()
        assert page.locator(".mark").count() == 1


def mask_at(project: Path, key: str) -> np.ndarray:
    """The right third of the mask clip's first frame, where the second person stands."""
    with FrameReader(project / "data/clips" / key / "src_mask.mp4") as reader:
        mask = next(iter(reader.read(range(1))))
    return mask[:, mask.shape[1] * 2 // 3 :] > 127


def test_blocked_clips_are_not_started(project, page, add_job):
    add_job("faceless", "review: true\nchecks: {block: [face]}")
    write_lossless(project / "data/jobs/faceless/src_face.mp4", [np.zeros((512, 512, 3), np.uint8)] * 5, 30)
    with daemon(project), serving(project, free_port()) as url:
        httpx.post(url + JOBS, json={"src_root_path": "data/jobs/faceless"}, timeout=60).raise_for_status()
        page.goto(f"{url}/#faceless")
        page.locator("#job .badge").get_by_text("ready").wait_for(timeout=2 * MINUTES)
        page.get_by_label("Pose", exact=True).wait_for()
        page.locator(".look .blocked").get_by_text("face").wait_for()
        assert page.locator(".findings .blocks").get_by_text("Face").count() == 1
        assert page.locator("#job").get_by_role("button", name="Make the video").is_disabled()
        shot(page, "look-blocked", "#job")


def test_looking_first_by_keyboard_on_a_phone(project, browser, two_people):  # noqa: F811
    page = browser.new_page(viewport={"width": 390, "height": 844}, has_touch=True, reduced_motion="reduce")
    page.set_default_timeout(30_000)
    with daemon(project), serving(project, free_port()) as url:
        two_people(url, "keys")
        page.goto(f"{url}/#keys")
        badge = page.locator("#job .badge")
        badge.get_by_text("ready").wait_for(timeout=2 * MINUTES)
        page.locator(".person").first.wait_for()
        assert page.get_by_label("Motion", exact=True).evaluate("video => video.paused"), "reduced motion"

        page.locator("#job-title").focus()
        tab_to(page, "Play")
        names = []
        while (name := tab(page)) != "Log":
            names.append(name)
            assert len(names) < 20, names
        for name in ("Moment", "Start", "End", "Person 1", "Person 2", "Fit the motion", "Make the video"):
            assert any(each.startswith(name) for each in names), (name, names)

        page.locator("#job-title").focus()
        tab_to(page, "Start")
        for _ in range(5):
            page.keyboard.press("ArrowRight")
        page.get_by_text("Numbers are counted again from the new start").wait_for()
        tab_to(page, "End")
        page.keyboard.press("PageDown")
        tab_to(page, "Person 2")
        page.keyboard.press("Enter")
        tab_to(page, "Fit the motion")
        page.keyboard.press("Space")
        tab_to(page, "Make the clips again")
        page.keyboard.press("Enter")
        badge.get_by_text("running").wait_for(timeout=MINUTES)
        badge.get_by_text("ready").wait_for(timeout=2 * MINUTES)
        page.get_by_text("Person 2 is followed").wait_for()
        used = used_settings(project, "keys")
        assert (used.person, used.start, used.retarget) == ("index:2", 0.5, "off")
        assert used.end == pytest.approx(100 / 30 - 1, abs=0.05)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "no horizontal scrolling"

        tab_to(page, "Make the video")
        page.keyboard.press("Enter")
        page.locator(".look").wait_for(state="hidden")
        page.get_by_role("button", name="Cancel").press("Enter")
        badge.get_by_text("cancelled").wait_for(timeout=MINUTES)
    page.close()


def tab(page) -> str:
    """Moves the focus to the next control; returns its name. The focus must be visible."""
    page.keyboard.press("Tab")
    name, outline = page.evaluate("""() => {
        const { activeElement: control } = document;
        const words = control.labels?.[0] ?? control;
        return [control.getAttribute("aria-label") ?? words.innerText, getComputedStyle(control).outlineStyle];
    }""")
    assert outline != "none", f"{name}: the focus is not visible"
    return name.strip()


def tab_to(page, name: str) -> None:
    for _ in range(40):
        if tab(page).startswith(name):
            return
    raise AssertionError(f"no Tab leads to {name}")


def test_the_form_asks_for_a_look_for_retakes_and_for_a_model(project, page, files, monkeypatch):
    monkeypatch.delenv("WAN_DEFAULT_SAMPLING_STEPS", raising=False)
    with serving(project, free_port()) as url:
        page.goto(url)
        choose(page, files, "careful")
        page.get_by_label("Look first").check()
        page.get_by_label("Careful").check()
        page.get_by_label("Strength of the motion").fill("1.2")
        page.get_by_role("button", name="Make the video").click()
        page.locator("#job .badge.queued").wait_for()
        content = yaml.safe_load((project / "data/jobs/careful/job.yaml").read_text())
        assert content["review"] is True
        assert (content["generate"]["retakes"], content["generate"]["pose_strength"]) == (2, 1.2)
        assert content["mode"] == "animate" and "model" not in content

        page.get_by_text("Wan2.2-Animate on this server").wait_for()
        assert page.locator(".prompt .note").is_hidden()
        for part, path in zip(("reference", "driving"), files):
            page.set_input_files(f"#{part}", str(path))
        page.get_by_label("Wan-Animate-2").check()
        for label in ("Replace it takes", "Strength of the motion", "Strength of the expression"):
            assert page.get_by_label(label).is_hidden()
        assert page.get_by_label("Distilled").is_checked()
        page.get_by_label("Base").check()
        page.locator(".variant").get_by_text("8 times as slow: 40 steps with guidance 3").wait_for()
        page.get_by_label("Draft").check()
        page.locator(".quality").get_by_text("20 steps").first.wait_for()
        assert page.get_by_label("Denoising steps").get_attribute("placeholder") == "20"
        for name, scheme, width in (
            ("model", "light", 1200),
            ("model-dark", "dark", 1200),
            ("model-phone", "light", 390),
        ):
            page.emulate_media(color_scheme=scheme)
            page.set_viewport_size({"width": width, "height": 900})
            shot(page, name)
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "no horizontal scrolling"
        page.get_by_label("Name").fill("second")
        page.get_by_label("Prompt", exact=True).fill("A man in a blue suit. Background: a beach.")
        page.get_by_role("button", name="Make the video").click()
        page.locator("#job .made-with").get_by_text("Wan-Animate-2, base").wait_for()
        shot(page, "model-job")
        content = yaml.safe_load((project / "data/jobs/second/job.yaml").read_text())
        assert content["model"] == "animate-2" and "mode" not in content
        assert content["generate"] == {
            "preset": "draft",
            "variant": "base",
            "prompt": "A man in a blue suit. Background: a beach.",
        }
