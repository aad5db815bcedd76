"""What assets are given: the drop folder, and torchrun."""

import dagster as dg

from wan_orchestration.defs.jobs.assets import observe
from wan_orchestration.errors import BadInput, validate
from wan_orchestration.job import Job, check_key
from wan_orchestration.launch.slurm import SlurmClient
from wan_orchestration.launch.torchrun import TorchrunClient
from wan_orchestration.settings import environment, from_variables


class JobFolders(dg.ConfigurableResource):
    """The drop folder.

    Dagster compares what an asset was made of with what it would be made of now by the last observations *before* the
    step that made it. So the run's job is observed here, before its first step, whoever started the run.
    """

    def setup_for_execution(self, context: dg.InitResourceContext) -> None:
        key = context.run.tags.get("dagster/partition") if context.run else None
        if key is None or context.instance is None:
            return
        try:
            for observation in observe(self.open(key)):
                context.instance.report_runless_asset_event(observation)
        except BadInput:
            # The step opens the job as well, and its failure is where a user looks.
            return

    def open(self, key: str) -> Job:
        """A job by its partition key. BadInput: the key is none, or the folder cannot be used."""
        return Job.open(environment().jobs_root / check_key(key))


LAUNCHERS = {"torchrun": TorchrunClient, "slurm": SlurmClient}


def launcher() -> TorchrunClient | SlurmClient:
    """What WAN_LAUNCHER names, as the variables with its prefix set it up. BadInput: one of them has a bad value."""
    name = environment().launcher
    kind = LAUNCHERS[name]
    given = validate(from_variables(kind, f"WAN_{name.upper()}_"), {})
    return kind(**given.model_dump(exclude_unset=True))


@dg.definitions
def resources() -> dg.Definitions:
    return dg.Definitions(
        resources={"job_folders": JobFolders(), "torchrun": TorchrunClient(), "launcher": launcher()},
        # The step runs in the run's own process, so that whoever kills the run kills the step; see launch/torchrun.py.
        executor=dg.in_process_executor,
    )
