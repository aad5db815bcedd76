"""The real worker with an engine that takes no time: each video is its pose clip. For tests of many jobs.

With FAST_STEP_SECONDS, each denoising step takes so long, and a cancelled job stops after one.
"""

import os
import shutil
import sys
import time
from types import ModuleType

from wan_orchestration.errors import Cancelled
from wan_orchestration.protocol.messages import Progress, Request, Result, Task
from wan_orchestration.video.reader import FrameReader
from wan_orchestration.video.stills import write_poster
from wan_orchestration.worker import main

STEP_SECONDS = float(os.environ.get("FAST_STEP_SECONDS") or 0)


def run(requests, is_cancelled=lambda: False, networks=None) -> None:
    for request, reporter in requests or ():
        try:
            for task in request.tasks:
                denoise(task, reporter, is_cancelled)
                reporter.finished(copy_clip(task, request))
        except Cancelled:
            continue


def denoise(task: Task, reporter, is_cancelled) -> None:
    for step in range(task.settings.sampling_steps if STEP_SECONDS else 0):
        if is_cancelled():
            raise Cancelled
        reporter.progress(
            Progress(
                job_id=task.job_id,
                phase="denoising",
                segment=1,
                segments=1,
                step=step,
                steps=task.settings.sampling_steps,
            )
        )
        time.sleep(STEP_SECONDS)


def copy_clip(task: Task, request: Request) -> Result:
    task.output.mkdir(parents=True, exist_ok=True)
    video = task.output / "video.mp4"
    shutil.copy(task.clips.driving.path, video)
    with FrameReader(video) as reader:
        write_poster(task.output / "poster.jpg", reader.read([0])[0])
        frames, fps = reader.info.frames, float(reader.info.fps)
    result = Result(
        job_id=task.job_id,
        status="succeeded",
        created_at=task.created_at,
        video_path=video,
        frames=frames,
        fps=fps,
        finite=True,
        warm=request.warm,
        settings=task.settings,
    )
    (task.output / "result.json").write_text(result.model_dump_json())
    return result


engine = ModuleType("wan_orchestration.generate.runner")
vars(engine)["run"] = run
sys.modules[engine.__name__] = engine

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
