"""Joins the finished segments into the video, and measures it."""

import logging
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any

from wan_orchestration.engine.models import Models
from wan_orchestration.generate.resume import UnfinishedVideo
from wan_orchestration.preprocess.networks import Networks
from wan_orchestration.protocol.messages import Quality, Task
from wan_orchestration.quality.likeness import likeness
from wan_orchestration.quality.pose import local_estimator
from wan_orchestration.quality.video_quality import measure
from wan_orchestration.settings.environment import environment
from wan_orchestration.video.concat import concatenate
from wan_orchestration.video.reader import FrameReader
from wan_orchestration.video.stills import write_poster
from wan_orchestration.weights.snapshot import Snapshot

log = logging.getLogger(__name__)


def join(task: Task, unfinished: UnfinishedVideo) -> dict[str, Any]:
    """Write the video, its poster and, if the task asks, the unquantised frames. Returns fields of the result."""
    path, clips = task.output / "video.mp4", task.clips
    if lost := concatenate(unfinished.files(), path, clips.sound, clips.driving.start):
        log.warning(lost)
    with FrameReader(path) as reader:
        info = reader.info
        write_poster(task.output / "poster.jpg", reader.read([info.frames // 2])[0])
    if task.save_frames:
        unfinished.save_exact(task.save_frames)
    return {
        "video_path": path,
        "frames": info.frames,
        "fps": float(info.fps),
        "width": info.width,
        "height": info.height,
    }


def measure_quality(
    task: Task,
    unfinished: UnfinishedVideo,
    snapshot: Snapshot,
    models: Models | None,
    tell: Callable[[str], None],
    networks: Networks | None = None,
) -> Quality | None:
    """Write the preview and measure the quality. None, and a message, after an error: the video itself is complete.

    `networks` keeps the pose estimator's networks for the next task.
    """
    models_root = environment().models_root
    assert models_root is not None
    try:
        return measure(
            task.output / "video.mp4",
            task.clips,
            [segment.frames for segment in unfinished.segments],
            task.output / "preview.webp",
            lambda: local_estimator(snapshot.path, models_root, networks or Networks()),
            partial(likeness, models.image_encoder(), models.device) if models and models.of(snapshot) else None,
        )
    except Exception:
        tell(f"{task.job_id}: the quality could not be measured\n{traceback.format_exc()}")
        return None
