"""The clips that generation reads."""

import dagster as dg

from wan_orchestration.defs.clips.versions import clips_version
from wan_orchestration.defs.failures import failures_in_words
from wan_orchestration.defs.jobs.assets import job_inputs
from wan_orchestration.defs.partitions import jobs
from wan_orchestration.defs.resources import JobFolders
from wan_orchestration.errors import BadInput
from wan_orchestration.job import place_clips
from wan_orchestration.settings import environment


@dg.asset(
    partitions_def=jobs,
    deps=[job_inputs],
    group_name="animation",
    kinds={"file"},
    owners=["team:animation"],
    code_version="1",
)
def preprocessed_clips(context: dg.AssetExecutionContext, job_folders: JobFolders) -> dg.MaterializeResult:
    """Pose and face clips, the reference picture and, for replacement, background and mask, in `data/clips/<job>`.

    A job's ready clips are checked frame by frame and placed.
    """
    with failures_in_words(context):
        job = job_folders.open(context.partition_key)
        if job.kind == "raw":
            raise BadInput(
                f"{job.folder}: holds a driving video and a picture, but clips cannot be made from them yet; "
                "put ready clips there: src_pose.mp4, src_face.mp4, src_ref.png (and src_bg.mp4, src_mask.mp4)"
            )
        clips = place_clips(job, environment().clips_root / job.key)
    return dg.MaterializeResult(
        data_version=clips_version(clips.folder),
        metadata={
            "mode": clips.mode,
            "frames": clips.pose.frames,
            "fps": float(clips.pose.fps),
            "size": f"{clips.pose.width}x{clips.pose.height}",
            "duration": clips.pose.duration,
            "audio": clips.pose.has_audio,
            "path": dg.MetadataValue.path(clips.folder),
        },
    )
