"""What assets are given: the drop folder, the devices, and what launches the engine on them."""

import socket
from typing import Any

import dagster as dg

from wan_orchestration.defs.jobs.assets import observe
from wan_orchestration.defs.jobs.run_requests import Ask, jobs_of, run_tags
from wan_orchestration.errors import BadInput, validate
from wan_orchestration.jobs.folder import Job, check_key
from wan_orchestration.launch.gpus import Gpus
from wan_orchestration.launch.launcher import Launcher
from wan_orchestration.launch.run_launcher import HOST_TAG
from wan_orchestration.launch.slurm import SlurmClient
from wan_orchestration.launch.torchrun import TorchrunClient
from wan_orchestration.settings.environment import environment
from wan_orchestration.settings.variables import from_variables


class JobFolders(dg.ConfigurableResource):
    """The drop folder.

    Dagster compares what an asset was made of with what it would be made of now by the last observations *before* the
    step that made it. So the run's jobs are observed here, before its first step, whoever started the run. The run's
    tags say what it is about; by them the `drop_folder` sensor knows what has been run.
    """

    def setup_for_execution(self, context: dg.InitResourceContext) -> None:
        run, instance = context.run, context.instance
        if run is None or instance is None:
            return
        asks = []
        for key in jobs_of(run, instance.get_dynamic_partitions("jobs")):
            try:
                job = self.open(key)
                fingerprint = job.fingerprint()
                asks.append(Ask.of(job, fingerprint))
                for observation in observe(job, fingerprint):
                    instance.report_runless_asset_event(observation)
            except BadInput:
                # The step opens the job as well, and its failure is where a user looks.
                continue
        instance.add_run_tags(run.run_id, {HOST_TAG: socket.gethostname(), **(run_tags(asks) if asks else {})})

    def open(self, key: str) -> Job:
        """A job by its partition key. BadInput: the key is none, or the folder cannot be used."""
        return Job.open(environment().jobs_root / check_key(key))


def gpus() -> Gpus:
    """The devices as `WAN_GPUS_*` variables describe them. BadInput: one of them has a bad value."""
    return Gpus(**_given(Gpus, "WAN_GPUS_"))


def launcher(devices: Gpus) -> Launcher:
    """What WAN_LAUNCHER names, as the variables with its prefix set it up. BadInput: one of them has a bad value."""
    if environment().launcher == "slurm":
        return SlurmClient(**_given(SlurmClient, "WAN_SLURM_"))
    return TorchrunClient(gpus=devices, **_given(TorchrunClient, "WAN_TORCHRUN_"))


def _given(kind: type[dg.ConfigurableResource], prefix: str) -> dict[str, Any]:
    return validate(from_variables(kind, prefix, exclude={"gpus"}), {}).model_dump(exclude_unset=True)


@dg.definitions
def resources() -> dg.Definitions:
    devices = gpus()
    return dg.Definitions(
        resources={"job_folders": JobFolders(), "gpus": devices, "launcher": launcher(devices)},
        # The step runs in the run's own process, so that whoever kills the run kills the step; see launch/torchrun.py.
        executor=dg.in_process_executor,
    )
