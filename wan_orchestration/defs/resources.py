"""Resources of the assets: the drop folder's jobs, the devices, and the launcher that starts the engine on them."""

import socket
from typing import Any

import dagster as dg
from pydantic import PrivateAttr

from wan_orchestration.defs.jobs.assets import observe
from wan_orchestration.defs.jobs.review import supersede
from wan_orchestration.defs.jobs.run_requests import jobs_of, run_tags
from wan_orchestration.defs.jobs.versions import JobVersion
from wan_orchestration.errors import BadInput, validate
from wan_orchestration.jobs.clips import Clips, check_clips
from wan_orchestration.jobs.folder import Job, check_key
from wan_orchestration.launch.gpus import Gpus
from wan_orchestration.launch.launcher import Launcher
from wan_orchestration.launch.run_launcher import HOST_TAG
from wan_orchestration.launch.slurm import SlurmClient
from wan_orchestration.launch.torchrun import TorchrunClient
from wan_orchestration.protocol.devices import Card, cards
from wan_orchestration.settings.environment import environment
from wan_orchestration.settings.generate import GenerateSettings
from wan_orchestration.settings.variables import variables_model


class JobFolders(dg.ConfigurableResource):
    """The jobs of a run. Each folder is opened and hashed once a run, and its clips are checked once.

    To tell whether an asset is stale, Dagster uses the last observations *before* the step that made it. So every run
    observes its jobs here, before its first step. It is also tagged with their versions, which tell the `drop_folder`
    sensor what has been run.
    """

    _jobs: dict[str, tuple[Job, JobVersion]] = PrivateAttr(default_factory=dict)
    _clips: dict[str, Clips] = PrivateAttr(default_factory=dict)

    def setup_for_execution(self, context: dg.InitResourceContext) -> None:
        run, instance = context.run, context.instance
        if run is None or instance is None:
            return
        for key in jobs_of(run, instance.get_dynamic_partitions("jobs")):
            supersede(instance, key)
            try:
                job, version = self._open(key)
            except BadInput:
                # The step will open the job again and fail with this error, where users look for it.
                continue
            for observation in observe(job, version):
                instance.report_runless_asset_event(observation)
        versions = [version for _, version in self._jobs.values()]
        instance.add_run_tags(run.run_id, {HOST_TAG: socket.gethostname(), **(run_tags(versions) if versions else {})})

    def open(self, key: str) -> Job:
        """A job by its partition key. BadInput: not a key, or the folder cannot be used."""
        return self._open(key)[0]

    def version(self, key: str) -> JobVersion:
        """A job's version when the run began. BadInput as for `open`."""
        return self._open(key)[1]

    def clips(self, key: str, settings: GenerateSettings) -> Clips:
        """The checked clips in DATA_ROOT/clips/<key>, for generation with these settings. BadInput: `check_clips`."""
        known, wanted = self._clips.get(key), (settings.model, settings.mode)
        if known is None or (known.model, known.mode) != wanted or known.driving.frames <= settings.refert_num:
            folder = environment().clips_root / key
            known = self.remember(key, check_clips(folder, settings.mode, settings.refert_num, settings.model))
        return known

    def remember(self, key: str, clips: Clips) -> Clips:
        """Keeps a job's checked clips for the run's other steps, in place of those before."""
        self._clips[key] = clips
        return clips

    def _open(self, key: str) -> tuple[Job, JobVersion]:
        if key not in self._jobs:
            job = Job.open(environment().jobs_root / check_key(key))
            self._jobs[key] = job, JobVersion.of(job)
        return self._jobs[key]


def gpus() -> Gpus:
    """The devices as `WAN_GPUS_*` variables describe them. BadInput: a variable has a bad value."""
    return Gpus(**_given(Gpus, "WAN_GPUS_"))


def launcher(devices: Gpus) -> Launcher:
    """The launcher that WAN_LAUNCHER names, set up by the variables with its prefix. BadInput: one has a bad value."""
    if environment().launcher == "slurm":
        return SlurmClient(**_given(SlurmClient, "WAN_SLURM_"))
    return TorchrunClient(gpus=devices, **_given(TorchrunClient, "WAN_TORCHRUN_"))


def devices_of_a_run() -> int:
    """How many devices work on one video. BadInput: a variable has a bad value."""
    chosen = launcher(gpus())
    if isinstance(chosen, SlurmClient):
        return chosen.nodes * max(1, chosen.gpus_per_node)
    return chosen.processes if isinstance(chosen, TorchrunClient) else 1


def cards_of_a_run() -> list[Card]:
    """The cards of this machine that work on one video; none on the CPU or a cluster. BadInput as above."""
    chosen = launcher(gpus())
    return cards(chosen.gpus.devices)[: chosen.processes] if isinstance(chosen, TorchrunClient) else []


def _given(kind: type[dg.ConfigurableResource], prefix: str) -> dict[str, Any]:
    return validate(variables_model(kind, prefix, exclude={"gpus"}), {}).model_dump(exclude_unset=True)


@dg.definitions
def resources() -> dg.Definitions:
    devices = gpus()
    return dg.Definitions(
        resources={"job_folders": JobFolders(), "gpus": devices, "launcher": launcher(devices)},
        # A step runs in the run's own process, so that killing the run kills the step; see launch/torchrun.py.
        executor=dg.in_process_executor,
    )
