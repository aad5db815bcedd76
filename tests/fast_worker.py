"""The real worker with an engine that takes no time: each video is its pose clip. For tests of many jobs."""

import shutil
import sys
from types import ModuleType

from wan_orchestration.protocol.messages import Request, Result
from wan_orchestration.video.reader import FrameReader
from wan_orchestration.video.stills import write_poster
from wan_orchestration.worker import main


def run(request: Request | None, reporter) -> None:
    assert request is not None
    for task in request.tasks:
        task.output.mkdir(parents=True, exist_ok=True)
        video = task.output / "video.mp4"
        shutil.copy(task.clips.pose.path, video)
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
            settings=task.settings,
        )
        (task.output / "result.json").write_text(result.model_dump_json())
        reporter.finished(result)


engine = ModuleType("wan_orchestration.generate.runner")
vars(engine)["run"] = run
sys.modules[engine.__name__] = engine

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
