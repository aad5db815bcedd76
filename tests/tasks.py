"""Tasks for tests that send requests and make no videos."""

from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path

from wan_orchestration.jobs.clips import Clips
from wan_orchestration.protocol.messages import Task
from wan_orchestration.settings.generate import GenerateSettings
from wan_orchestration.video.info import Sound, VideoInfo


def make_task(job_id: str, folder: Path, settings: GenerateSettings | None = None) -> Task:
    """A task with clips and output in `folder`; the clips' files need not be there."""
    pose, face = (
        VideoInfo(folder / name, width, height, Fraction(30), frames=9, duration=0.3, has_audio=False)
        for name, width, height in (("src_pose.mp4", 96, 64), ("src_face.mp4", 512, 512))
    )
    clips = Clips(
        folder=folder,
        mode="animate",
        videos={"src_pose": pose, "src_face": face},
        reference=folder / "src_ref.png",
        sound=Sound(pose.path),
        notices=(),
    )
    return Task(
        job_id=job_id, clips=clips, output=folder, settings=settings or GenerateSettings(), created_at=datetime.now(UTC)
    )
