"""One partition for each job. Its key is the name of the job's folder."""

from collections.abc import Iterable

import dagster as dg

from wan_orchestration.jobs.folder import check_key
from wan_orchestration.settings.environment import environment

jobs = dg.DynamicPartitionsDefinition(name="jobs")


def register(instance: dg.DagsterInstance, key: str) -> None:
    """Adds a job's partition, unless it exists. BadInput: not a job key."""
    instance.add_dynamic_partitions("jobs", [check_key(key)])


def without_output(instance: dg.DagsterInstance, keys: Iterable[str]) -> list[str]:
    """The jobs that have no files in `clips/` or `videos/`, and no materialization of either."""
    env = environment()
    bare = [key for key in keys if not any((root / key).exists() for root in (env.clips_root, env.videos_root))]
    if not bare:
        return []
    assets = ("preprocessed_clips", "generated_video")
    made = set().union(*(instance.get_materialized_partitions(dg.AssetKey(name)) for name in assets))
    return [key for key in bare if key not in made]
