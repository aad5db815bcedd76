"""Compares several short jobs in one launch with one launch per job.

    uv run python benchmarks/many_jobs.py [--jobs 8] [--frames 5] [--size 192x128] [--steps 4] [--checkpoint-dir DIR]

Jobs run as in the worker: a launch takes one request and loads the weights once. The time runs from the start of the
first process to the end of the last. Each side starts with empty caches. Without --checkpoint-dir a small random
snapshot is used.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from long_video import draw_job, random_snapshot

from wan_orchestration.jobs.clips import check_clips
from wan_orchestration.protocol.messages import Request, Task
from wan_orchestration.settings.generate import GenerateSettings

RUN = """
import sys
from pathlib import Path
from wan_orchestration.generate import runner
from wan_orchestration.protocol.messages import Request
class Quiet:
    def log(self, message): pass
    progress = clip = finished = log
results = runner.run([(Request.model_validate_json(Path(sys.argv[1]).read_text()), Quiet())])
sys.exit("; ".join(result.error for result in results if result.error) or None)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=8)
    parser.add_argument("--frames", type=int, default=5)
    parser.add_argument("--clip-len", type=int, default=5)
    parser.add_argument("--size", default="192x128", help="WIDTHxHEIGHT, multiples of 16")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--checkpoint-dir", type=Path)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    width, height = map(int, arguments.size.split("x"))

    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        snapshot = (arguments.checkpoint_dir or random_snapshot(scratch)).absolute()
        jobs = [draw_job(scratch / f"job-{i}", arguments.frames, height, width) for i in range(arguments.jobs)]
        each = [request(snapshot, [job], arguments, scratch / "each") for job in jobs]
        together = [request(snapshot, jobs, arguments, scratch / "together")]
        rows = {
            "separate launches": launch(each, scratch / "cache-each"),
            "one launch": launch(together, scratch / "cache-together"),
        }
    print(f"{'':>20} {'seconds':>9} {'CPU s':>9}")
    for name, row in rows.items():
        print(f"{name:>20} {row['seconds']:>9.1f} {row['cpu_seconds']:>9.1f}")
    ratio = rows["one launch"]["seconds"] / rows["separate launches"]["seconds"]
    print(f"{arguments.jobs} jobs in one launch take {ratio:.2f} times as long as in {arguments.jobs} launches")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows | {"ratio": ratio, "jobs": arguments.jobs}, indent=2))


def request(snapshot: Path, jobs: list[Path], arguments: argparse.Namespace, output: Path) -> str:
    settings = GenerateSettings(clip_len=arguments.clip_len, sampling_steps=arguments.steps)
    tasks = [
        Task(
            job_id=job.name,
            clips=check_clips(job, settings.mode, settings.refert_num),
            output=output / job.name,
            settings=settings,
            created_at=datetime(2000, 1, 1, tzinfo=UTC),
        )
        for job in jobs
    ]
    return Request(snapshot=snapshot, tasks=tasks).model_dump_json()


def launch(requests: list[str], cache: Path) -> dict[str, float]:
    """Run requests one after another, each in its own process."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    for text in requests:
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            file.write(text)
            file.flush()
            environment = {**os.environ, "WAN_CACHE_ROOT": str(cache)}
            subprocess.run([sys.executable, "-c", RUN, file.name], check=True, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": time.perf_counter() - started, "cpu_seconds": spent}


if __name__ == "__main__":
    main()
