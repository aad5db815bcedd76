"""The drop folder in the asset graph: each job's inputs and settings, whose changes make clips and videos stale.

These assets are observed, not materialized: by the `drop_folder` sensor when a folder changes, and by the `JobFolders`
resource when a run starts. So every run, however it was started, records which inputs and settings it used.
"""

from collections.abc import Iterator, Mapping

import dagster as dg

from wan_orchestration.defs.jobs.versions import JobVersion, dumped
from wan_orchestration.defs.partitions import jobs
from wan_orchestration.jobs.folder import Job

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
    description="Folders and files in `data/jobs` that cannot be used as they are, with the reason. "
    "Correct one, and the drop folder's sensor starts its job.",
    group_name="animation",
    kinds={"file"},
    owners=["team:animation"],
)


def observe(job: Job, version: JobVersion) -> Iterator[dg.AssetObservation]:
    """Observations of a job's inputs and settings."""
    files = ", ".join(path.name for path in job.inputs.values())
    inputs = {"kind": job.kind, "files": files, "preprocess": dumped(job.preprocess_settings())}
    settings = {"generate": dumped(job.generate_settings()), "priority": job.file.priority}
    for asset, data_version, metadata in (
        (job_inputs, version.inputs, inputs),
        (job_settings, version.settings, settings),
    ):
        yield dg.AssetObservation(
            asset.key,
            partition=job.key,
            tags={"dagster/data_version": data_version},
            metadata={"folder": str(job.folder), **metadata},
        )


def rejected(reasons: Mapping[str, str]) -> dg.AssetMaterialization:
    """The table of folders and files that cannot be used; `reasons` by name."""
    schema = dg.TableSchema([dg.TableColumn("name"), dg.TableColumn("reason")])
    rows = [dg.TableRecord({"name": name, "reason": reason}) for name, reason in reasons.items()]
    return dg.AssetMaterialization(
        rejected_folders.key, metadata={"rejected": len(rows), "table": dg.MetadataValue.table(rows, schema)}
    )
