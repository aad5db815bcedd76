"""The drop folder as Dagster sees it: what a job's inputs and settings are, so that what was made of them can be stale.

Nothing is made here. The data versions are observed: by the `drop_folder` sensor as folders change, and by `JobFolders`
at the start of each run, so that a run records what it was made of however it was started.
"""

import hashlib
import json
from collections.abc import Iterator

import dagster as dg

from wan_orchestration.defs.partitions import jobs
from wan_orchestration.job import Job

DATA_VERSION = "dagster/data_version"

job_inputs = dg.AssetSpec(
    "job_inputs",
    description="Files of a job in the drop folder `data/jobs/<job>`, and how they are to be preprocessed: "
    "ready clips (`src_pose.mp4`, `src_face.mp4`, `src_ref.png`) or a driving video and a picture.",
    group_name="animation",
    kinds={"file"},
    owners=["team:animation"],
    partitions_def=jobs,
)

job_settings = dg.AssetSpec(
    "job_settings",
    description="How a job's video is to be generated: the `generate` block of its `job.yaml`, over `WAN_DEFAULT_*` "
    "variables, over the defaults.",
    group_name="animation",
    kinds={"yaml"},
    owners=["team:animation"],
    partitions_def=jobs,
)


def observe(job: Job) -> Iterator[dg.AssetObservation]:
    """What a job's folder holds now. BadInput: a fault in its settings."""
    preprocess, generate = (
        settings.model_dump(mode="json") for settings in (job.preprocess_settings(), job.generate_settings())
    )
    yield _observation(
        job_inputs,
        job,
        [job.fingerprint(), preprocess],
        {"kind": job.kind, "files": ", ".join(path.name for path in job.inputs.values()), "preprocess": preprocess},
    )
    yield _observation(job_settings, job, generate, {"generate": generate, "priority": job.file.priority})


def _observation(spec: dg.AssetSpec, job: Job, facts: object, metadata: dict) -> dg.AssetObservation:
    version = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return dg.AssetObservation(
        spec.key, partition=job.key, tags={DATA_VERSION: version}, metadata={"folder": str(job.folder), **metadata}
    )
