"""An asset that launches the stand-in worker; STAND_IN_* variables say what it does and where."""

import os
import sys
from contextlib import closing
from pathlib import Path

import dagster as dg

from wan_orchestration.launch import torchrun
from wan_orchestration.launch.gpus import Gpus
from wan_orchestration.launch.launcher import Launcher
from wan_orchestration.protocol.messages import Request

# Dagster restores the path after it has loaded this file, so the import below cannot wait until the step runs.
sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[1])]
from tasks import make_task

torchrun.WORKER = "stand_in_worker"


@dg.asset
def launched(context: dg.AssetExecutionContext, launcher: Launcher):
    folder = Path(os.environ["STAND_IN_FOLDER"])
    tasks = [make_task(name, folder) for name in os.environ["STAND_IN_JOBS"].split()]
    with closing(launcher.generate(context, Request(snapshot=folder, tasks=tasks))) as results:
        return dg.MaterializeResult(metadata={result.job_id: result.status for result in results})


options = {
    "grace_seconds": 1,
    "stall_timeout_seconds": float(os.environ.get("STAND_IN_STALL", 600)),
    "keep_warm_seconds": float(os.environ.get("STAND_IN_WARM", 0)),
}
processes = int(os.environ.get("STAND_IN_PROCESSES", 1))
slots = int(os.environ.get("STAND_IN_SLOTS", 1))
gpus = Gpus(devices="cpu", cpu_slots=slots, lease_folder=os.environ["WAN_GPUS_LEASE_FOLDER"])
client = torchrun.TorchrunClient(gpus=gpus, processes=processes, **options)
defs = dg.Definitions([launched], resources={"launcher": client}, executor=dg.in_process_executor)
