"""`wan-animate run` and `wan-animate demo`: make the video of one job through Dagster.

Both run the plain `dagster asset materialize` command and print it. They add two things: they register the job as a
partition, as the `drop_folder` sensor does where `dagster dev` runs, and they shorten the output.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg

from wan_orchestration.cli.dagster_command import MODULE, execute, in_shell, open_instance, variables_of
from wan_orchestration.cli.terminal import reports_errors
from wan_orchestration.defs.freshness import clips_are_fresh, latest
from wan_orchestration.defs.jobs.review import REVIEW
from wan_orchestration.defs.jobs.versions import JobVersion
from wan_orchestration.defs.partitions import register
from wan_orchestration.errors import BadInput
from wan_orchestration.jobs.folder import Job, check_key
from wan_orchestration.protocol.messages import Result
from wan_orchestration.settings.environment import environment

CLIPS = "preprocessed_clips"
ASSETS = ("weight_snapshot", CLIPS, "generated_video")
DEMO_WEIGHTS = "wan-animate-mini"
DEMO_SETTINGS = {"sampling_steps": 6, "clip_len": 17}
"""The mini model was trained on short segments, and few denoising steps are enough for it."""


@reports_errors()
def run(argv: Sequence[str]) -> None:
    """`wan-animate run JOB`."""
    parser = argparse.ArgumentParser("wan-animate run", description="Make the video of one job through Dagster.")
    parser.add_argument("job", help="name of a folder in data/jobs")
    materialize(parser.parse_args(argv).job, {}, {})


@reports_errors()
def demo(argv: Sequence[str]) -> None:
    """`wan-animate demo`."""
    argparse.ArgumentParser(
        "wan-animate demo", description="Make the video of data/jobs/demo with the mini weights, through Dagster."
    ).parse_args(argv)
    env = environment()
    Job.open(env.jobs_root / "demo")
    weights = env.data_root / "models" / DEMO_WEIGHTS
    if not weights.is_dir():
        raise BadInput(
            f"{weights}: no such folder; it holds the demo's weights, which are part of the project: restore it"
        )
    materialize("demo", {"WAN_CHECKPOINT_DIR": str(weights)}, DEMO_SETTINGS)
    print(
        "\nThe model is a mini one, trained on drawn figures (mini/README.md); all else is as with the 14B weights.\n"
        "This makes the same job with the 14B weights, downloaded from ModelScope or given by WAN_CHECKPOINT_DIR:\n"
        "  uv run wan-animate run demo"
    )


def materialize(key: str, variables: Mapping[str, str], settings: Mapping[str, Any]) -> None:
    """Make a job's video on the instance of DAGSTER_HOME, and print where it is. BadInput, RunFailed.

    Args:
        key: of the job.
        variables: added to this process's environment for the run.
        settings: win over the job's own.
    """
    env = environment()
    job = Job.open(env.jobs_root / check_key(key))
    instance = open_instance()
    register(instance, key)
    assets = [name for name in ASSETS if name != CLIPS or not _was_looked_at(instance, job)]

    variables = {**variables_of(instance), **variables}
    command = ["dagster", "asset", "materialize", *MODULE, "--select", ",".join(assets), "--partition", key]
    if settings:
        command += ["--config-json", json.dumps({"ops": {"generated_video": {"config": settings}}})]
    shown = in_shell(["uv", "run", *command], variables)
    print(f"Materializing {', '.join(assets)} of job {key}:\n  {shown}\n", flush=True)
    execute(instance, command, variables)

    result = Result.read(env.videos_root / key / "result.json")
    assert result is not None
    print(
        f"\nThe video: {result.video_path}\n"
        f"  {result.frames} frames of {result.width}x{result.height} at {result.fps:g} per second, "
        f"made in {result.seconds.total:.1f} s on {result.device} ({result.dtype})\n"
        f"\nThe run, its checks and the video's history are in the UI, http://127.0.0.1:3000:\n"
        f"  {in_shell(['uv', 'run', 'dagster', 'dev'], variables)}"
    )


def _was_looked_at(instance: dg.DagsterInstance, job: Job) -> bool:
    """Whether the job's clips were made to be looked at, and are up to date. They are then used as they are."""
    clips = latest(instance, CLIPS, job.key)
    if clips is None or not (environment().clips_root / job.key).is_dir():
        return False
    return (job.file.review or REVIEW in clips.tags) and clips_are_fresh(clips.tags, JobVersion.of(job))
