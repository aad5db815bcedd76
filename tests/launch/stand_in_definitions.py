"""An asset that launches the stand-in worker; what it is to do and where comes from the environment."""

import os
import sys
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg

from wan_orchestration.launch import torchrun
from wan_orchestration.messages import Request, Task
from wan_orchestration.settings import GenerateSettings

torchrun.WORKER = "stand_in_worker"
sys.path.append(str(Path(__file__).parent))


@dg.asset
def launched(context: dg.AssetExecutionContext, torchrun: torchrun.TorchrunClient):
    folder = Path(os.environ["STAND_IN_FOLDER"])
    task = Task(
        job_id=os.environ["STAND_IN_JOB"],
        clips=folder,
        output=folder,
        settings=GenerateSettings(),
        created_at=datetime.now(UTC),
    )
    results = torchrun.run(context, Request(snapshot=folder, tasks=[task]))
    return dg.MaterializeResult(metadata={"status": results[0].status})


defs = dg.Definitions(
    [launched], resources={"torchrun": torchrun.TorchrunClient(grace_seconds=1)}, executor=dg.in_process_executor
)
