"""One partition for each job. Its key is the name of the job's folder."""

import dagster as dg

from wan_orchestration.job import check_key

jobs = dg.DynamicPartitionsDefinition(name="jobs")


def register(instance: dg.DagsterInstance, key: str) -> None:
    """Make a job known to Dagster; nothing happens where it is already. BadInput: not a job key."""
    instance.add_dynamic_partitions("jobs", [check_key(key)])
