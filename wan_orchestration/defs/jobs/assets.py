"""The drop folder as Dagster sees it: what a job's inputs and settings are, so that what was made of them can be stale.

Nothing is made here. The data versions are observed: by the `drop_folder` sensor as folders change, and by `JobFolders`
at the start of each run, so that a run records what it was made of however it was started.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import dagster as dg
from pydantic import BaseModel

from wan_orchestration.defs.partitions import jobs
from wan_orchestration.jobs.folder import Job

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


rejected_folders = dg.AssetSpec(
    "rejected_folders",
    description="Folders and files in `data/jobs` that cannot be made into videos as they are, and why. "
    "Each is taken up once it has been mended.",
    group_name="animation",
    kinds={"file"},
    owners=["team:animation"],
)


def observe(job: Job, fingerprint: str | None = None) -> Iterator[dg.AssetObservation]:
    """What a job's folder holds now. BadInput: a fault in its settings.

    `fingerprint` spares reading the inputs where that has been done.
    """
    version = versions(job, fingerprint)
    files = ", ".join(path.name for path in job.inputs.values())
    facts = {
        job_inputs.key: {"kind": job.kind, "files": files, "preprocess": _dump(job.preprocess_settings())},
        job_settings.key: {"generate": _dump(job.generate_settings()), "priority": job.file.priority},
    }
    for key, metadata in facts.items():
        yield dg.AssetObservation(
            key,
            partition=job.key,
            tags={DATA_VERSION: version[key.to_user_string()]},
            metadata={"folder": str(job.folder), **metadata},
        )


def versions(job: Job, fingerprint: str | None = None) -> dict[str, str]:
    """Data versions of `job_inputs` and `job_settings`, the latter of what decides a video. BadInput: bad settings."""
    facts = {
        "job_inputs": [fingerprint or job.fingerprint(), _dump(job.preprocess_settings())],
        "job_settings": job.generate_settings().decisive(),
    }
    return {
        name: hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()
        for name, made_of in facts.items()
    }


def rejected(reasons: Mapping[str, str]) -> dg.AssetMaterialization:
    """The table of folders and files that cannot be used, by name."""
    schema = dg.TableSchema([dg.TableColumn("name"), dg.TableColumn("reason")])
    rows = [dg.TableRecord({"name": name, "reason": reason}) for name, reason in reasons.items()]
    return dg.AssetMaterialization(
        rejected_folders.key, metadata={"rejected": len(rows), "table": dg.MetadataValue.table(rows, schema)}
    )


def _dump(settings: BaseModel) -> dict[str, Any]:
    return settings.model_dump(mode="json")
