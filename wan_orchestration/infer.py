"""`wan-animate infer`: one job from a shell, alone or under torchrun. Prints the result as one JSON object."""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from datetime import UTC, datetime
from pathlib import Path

from wan_orchestration.cli.flags import Parser, add_settings, given_settings
from wan_orchestration.cli.terminal import ProgressLine, print_error
from wan_orchestration.errors import BadInput, validate
from wan_orchestration.jobs.clips import Clips, check_clips
from wan_orchestration.jobs.folder import Job
from wan_orchestration.protocol.devices import cuda_devices, lease_folder
from wan_orchestration.protocol.leases import lease
from wan_orchestration.protocol.messages import CharacterRequest, FinishedSegment, Progress, Request, Result, Task
from wan_orchestration.settings.environment import Environment, GpuEnvironment, World
from wan_orchestration.settings.generate import GenerateSettings
from wan_orchestration.weights import hub

VISIBLE = "CUDA_VISIBLE_DEVICES"


class TerminalReporter(ProgressLine):
    """Shows a launch on stderr; see `protocol.messages.Reporter`."""

    def progress(self, progress: Progress) -> None:
        self.show(str(progress), progress.fraction)

    def segment(self, segment: FinishedSegment) -> None:
        self.log(str(segment))

    def finished(self, result: Result) -> None:
        self.close()
        seconds = f"{result.seconds.total:.1f} s"
        self.log(f"{result.job_id}: {result.status} after {seconds}" + (f": {result.error}" if result.error else ""))


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code, 0 only if the video was made.

    Of several ranks, only rank 0 reports the outcome. The others return 0 even after an error: torchrun would otherwise
    kill rank 0 before it can report.
    """
    world = World()
    created_at, job_id = datetime.now(UTC), ""
    try:
        arguments = parse(argv)
        # Libraries may print to stdout, which is reserved for the JSON object.
        with (
            redirect_stdout(sys.stderr),
            TerminalReporter() as reporter,
            leased_gpus(world, arguments.device, reporter),
        ):
            if world.rank > 0:
                return follow()
            env = environment(arguments.checkpoint_dir)
            job = Job.open(arguments.src_root, model=arguments.model, env=env)
            job_id = job.key
            result = infer(job, arguments, env, reporter, created_at)
    except BadInput as error:
        if world.rank > 0:
            return 0
        print_error(str(error))
        result = Result(job_id=job_id, status="failed", created_at=created_at, error=str(error), bad_input=True)
    print(result.model_dump_json(indent=2, exclude={"kind"}))
    return 0 if result.status == "succeeded" else 1


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the flags. A setting whose flag is not given is None.

    Raises:
        BadInput: an unknown flag, or a value of the wrong type.
    """
    parser = Parser(
        "wan-animate infer", description="Generate the video of one job folder and print the result as JSON."
    )
    add = parser.add_argument
    add("--src-root", type=Path, required=True, metavar="DIR", help="the job folder, for instance data/jobs/demo")
    add("--output", type=Path, metavar="DIR", help="folder of the result (default: DATA_ROOT/videos/<job>)")
    add("--checkpoint-dir", type=Path, metavar="DIR", help="a snapshot to use as it is (default: WAN_CHECKPOINT_DIR)")
    add("--save-frames", type=Path, metavar="FILE.npz", help="also write the frames as float32 (3, T, H, W) in [-1, 1]")
    add("--replace", dest="mode", action="store_const", const="replace", help="the same as --mode replace")
    add_settings(parser, GenerateSettings)
    return parser.parse_args(argv)


def environment(checkpoint_dir: Path | None) -> Environment:
    return validate(Environment, {"checkpoint_dir": checkpoint_dir} if checkpoint_dir else {})


@contextmanager
def leased_gpus(world: World, device: str | None, reporter: TerminalReporter) -> Iterator[None]:
    """Lease GPUs for the ranks on this machine, and make them visible to PyTorch. Warm launches leave them.

    A single rank takes any free one. Commands on the CPU share it without a lease.
    """
    gpus = validate(GpuEnvironment, {})
    allowed, count = cuda_devices(gpus.devices) if device != "cpu" else [], world.local_world_size
    if count > 1:
        # Each rank finds the same ones, and one leases them for all.
        allowed = allowed[:count]
    if allowed:
        os.environ[VISIBLE] = ",".join(allowed)
    if not allowed or world.local_rank > 0:
        yield
        return
    with lease(
        lease_folder(gpus.lease_folder), allowed, min(count, len(allowed)), "wan-animate infer", reporter.log
    ) as leased:
        os.environ[VISIBLE] = ",".join(leased.devices)
        yield


def make_clips(job: Job, model: str, env: Environment, reporter: TerminalReporter) -> Path:
    """Preprocess a raw job into DATA_ROOT/clips/<job>, for a model family; returns that folder.

    Raises:
        BadInput: the driving video, the picture or a setting cannot be used.
    """
    assert env.models_root is not None
    settings = job.preprocess_settings(model=model)
    # OpenCV and the estimators are imported here.
    return (
        settings.family.part("clips")
        .make(
            job.inputs["driving"],
            job.inputs["reference"],
            env.clips_root / job.key,
            settings,
            snapshot=hub.local_snapshot(env),
            models_root=env.models_root,
            others=[CharacterRequest(reference=picture, settings=one) for picture, one in job.other_characters()],
            log=reporter.log,
        )
        .output
    )


def check_quality(job: Job, clips: Clips) -> None:
    """BadInput: the clips fail a check that keeps the job from generation."""
    limits = job.check_settings()
    if limits.block:
        from wan_orchestration.quality.clips_quality import measure_clips, why_blocked  # noqa: PLC0415 (OpenCV)

        if reason := why_blocked(measure_clips(clips), limits, job.kind == "clips"):
            raise BadInput(reason)


def follow() -> int:
    """Take part in rank 0's job, on every other rank. Returns 0."""
    from wan_orchestration.generate.runner import run  # noqa: PLC0415 (torch)

    run(None)
    return 0


def infer(
    job: Job, arguments: argparse.Namespace, env: Environment, reporter: TerminalReporter, created_at: datetime
) -> Result:
    """Generate a job's video. The result has the errors of the generation.

    Raises:
        BadInput: a setting, the clips or the snapshot cannot be used.
    """
    settings = job.generate_settings(**given_settings(arguments, GenerateSettings))
    snapshot = hub.resolve(
        env,
        reporter.log,
        allow_download=arguments.checkpoint_dir is None,
        model=settings.model,
        variant=settings.variant,
    )
    folder = job.folder if job.kind == "clips" else make_clips(job, settings.model, env, reporter)
    clips = check_clips(folder, settings.mode, settings.refert_num, settings.model)
    check_quality(job, clips)
    task = Task(
        job_id=job.key,
        clips=clips,
        output=(arguments.output or env.videos_root / job.key).absolute(),
        settings=settings,
        created_at=created_at,
        save_frames=arguments.save_frames and arguments.save_frames.absolute(),
        checks=job.check_settings(),
    )
    reporter.progress(Progress(job_id=job.key, phase="starting"))
    from wan_orchestration.generate.runner import run  # noqa: PLC0415 (torch, once the input is known to be good)

    request = Request(snapshot=snapshot.path, revision=snapshot.revision, variant=snapshot.variant, tasks=[task])
    return run([(request, reporter)])[0]


if __name__ == "__main__":
    sys.exit(main())
