"""An asset that generates videos on a cluster; REQUEST and CLIENT hold the request and the launcher."""

import os
from contextlib import closing

import dagster as dg

from wan_orchestration.launch.slurm import SlurmClient
from wan_orchestration.protocol.messages import Request


@dg.asset
def launched(context: dg.AssetExecutionContext, slurm: SlurmClient):
    with closing(slurm.generate(context, Request.model_validate_json(os.environ["REQUEST"]))) as results:
        return dg.MaterializeResult(metadata={result.job_id: result.status for result in results})


defs = dg.Definitions(
    [launched],
    resources={"slurm": SlurmClient.model_validate_json(os.environ["CLIENT"])},
    executor=dg.in_process_executor,
)
