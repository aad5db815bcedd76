"""Films the page's progress bar during a job: its value and words every two seconds, a screenshot every ten.

    uv run wan-animate serve --dagster &
    uv run python benchmarks/film_progress.py data/jobs/demo --out film --set clip_len=41 --set sampling_steps=20

Needs Chromium. Prints a table, which it also writes to `film/table.md`, and the longest time for which the bar and the
API's fraction did not move before the video was done. A bar without a value is animated; the table says "moves".
"""

import argparse
import itertools
import shutil
import time
from pathlib import Path

import httpx
from playwright.sync_api import sync_playwright

JOBS = "/animate/jobs"
LOOK_SECONDS, PICTURES = 2.0, 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="a job folder of the server")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--set", action="append", default=[], metavar="SETTING=VALUE")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    body = {"src_root_path": arguments.folder} | dict(item.split("=", 1) for item in arguments.set)
    job = httpx.post(arguments.url + JOBS, json=body, timeout=60).raise_for_status().json()
    rows = film(arguments.url, job["job_id"], arguments.out)
    lines = ["| s | bar | words | API | API's words |", "|---|---|---|---|---|"]
    lines += [f"| {at:.0f} | {shown(bar)} | {words} | {shown(api)} | {text} |" for at, bar, words, api, text in rows]
    for name, column in (("bar", 1), ("API", 3)):
        lines.append(f"\nThe {name} stood still for {longest(rows, column):.0f} s at most.")
    (arguments.out / "table.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def film(url: str, key: str, out: Path) -> list[tuple[float, float | None, str, float | None, str]]:
    rows = []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 900, "height": 700})
        page.goto(f"{url}/#{key}")
        page.locator("#job .bar").wait_for()
        started, number = time.monotonic(), 0
        while True:
            at = time.monotonic() - started
            bar = page.locator("#job .bar").evaluate("bar => bar.hasAttribute('value') ? bar.value : null")
            job = httpx.get(f"{url}{JOBS}/{key}", timeout=60).raise_for_status().json()
            progress = job["progress"] or {"fraction": None, "words": job["status"]}
            words = page.locator("#job .words").inner_text()
            rows.append((at, bar, words, progress["fraction"], progress["words"]))
            if number % PICTURES == 0:
                page.screenshot(path=str(out / f"{at:04.0f}.png"))
            if job["finished_at"]:
                browser.close()
                return rows
            number += 1
            page.wait_for_timeout(max(0.0, LOOK_SECONDS * number - (time.monotonic() - started)) * 1000)


def longest(rows: list[tuple], column: int) -> float:
    """The longest time in seconds for which a column kept its value."""
    same = [list(group) for value, group in itertools.groupby(rows, lambda row: row[column]) if value not in (None, 1)]
    return max((group[-1][0] - group[0][0] for group in same), default=0.0)


def shown(value: float | None) -> str:
    return "moves" if value is None else f"{value:.3f}"


if __name__ == "__main__":
    main()
