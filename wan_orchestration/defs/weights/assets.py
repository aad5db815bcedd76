"""The weights."""

from typing import Any, Literal

import dagster as dg
from pydantic import BaseModel, Field

from wan_orchestration.defs.config import optional_fields
from wan_orchestration.defs.failures import failures_in_words
from wan_orchestration.defs.jobs.run_requests import jobs_of
from wan_orchestration.defs.resources import JobFolders
from wan_orchestration.defs.weights.needed import Snapshots, asset_version
from wan_orchestration.errors import BadInput
from wan_orchestration.settings.environment import environment
from wan_orchestration.settings.generate import Model
from wan_orchestration.weights import hub
from wan_orchestration.weights.snapshot import Snapshot


class WeightSettings(BaseModel):
    """Which weights are wanted."""

    model: Model = Field(
        default="auto",
        description="Model family. auto: those that the run's jobs need; without jobs, that of the configured weights.",
    )
    variant: Literal["auto", "distilled", "base"] = Field(
        default="auto",
        description="Checkpoint of animate-2. auto: those that the run's jobs need; without jobs, one that is there, "
        "else distilled.",
    )
    verify: bool = Field(
        default=False, description="Compare every byte of a finished download with its SHA-256 (minutes)."
    )


class WeightConfig(optional_fields(WeightSettings)):
    """Which weights are wanted, and how they are checked."""


@dg.asset(
    group_name="animation",
    kinds={"pytorch", "file"},
    owners=["team:animation"],
    code_version="1",
)
def weight_snapshot(
    context: dg.AssetExecutionContext, config: WeightConfig, job_folders: JobFolders
) -> dg.MaterializeResult:
    """The weights of Wan2.2-Animate or Wan-Animate-2: `WAN_CHECKPOINT_DIR` as it is, or downloaded and verified.

    They are downloaded from ModelScope if `WAN_CHECKPOINT_DIR` is not set, or holds another family or variant than the
    one that is needed. Of Wan-Animate-2, only the checkpoint that is needed is downloaded. A complete download is used
    as it is; an interrupted one resumes.
    """
    settings = WeightSettings(**config.given())
    found: list[Snapshot] = []
    failed: list[BadInput] = []
    with failures_in_words(context, hub.DownloadError):
        for model, variant in _wanted(context, settings, job_folders):
            try:
                found.append(
                    hub.resolve(environment(), context.log.info, verify=settings.verify, model=model, variant=variant)
                )
            except BadInput as error:
                # The jobs that need these weights will fail with this error; others may go on.
                context.log.error(str(error))
                failed.append(error)
        if not found:
            raise failed[0]
    snapshot = found[0]
    sizes = [dg.TableRecord({"part": part, "megabytes": round(size / 1e6, 2)}) for part, size in snapshot.parts.items()]
    others = [f"{one.family} ({one.variant}): {one.path}" for one in found[1:]]
    return dg.MaterializeResult(
        data_version=dg.DataVersion(asset_version(context.instance, Snapshots(), snapshot.fingerprint)),
        metadata={
            "model": snapshot.family,
            "variant": snapshot.variant,
            "layout": snapshot.layout,
            "revision": snapshot.revision or "used as it is",
            "from": snapshot.source or "WAN_CHECKPOINT_DIR",
            "bytes": snapshot.bytes,
            "sizes": dg.MetadataValue.table(sizes),
            "files": snapshot.files,
            "dtype": snapshot.dtype,
            "path": dg.MetadataValue.path(snapshot.path),
            **({"others": "\n".join(others)} if others else {}),
        },
    )


def _wanted(
    context: dg.AssetExecutionContext, settings: WeightSettings, job_folders: JobFolders
) -> list[tuple[str, str | None]]:
    """Families and variants: those that are set, else those that the run's jobs need."""
    variant = None if settings.variant == "auto" else settings.variant
    if settings.model != "auto" or variant:
        return [(settings.model, variant)]
    ops: Any = context.run.run_config.get("ops", {})
    given: dict[str, Any] = {}
    for asset in ("preprocessed_clips", "generated_video"):
        given |= ops.get(asset, {}).get("config", {})
    given = {name: given.get(name) for name in ("model", "variant", "mode")}
    wanted: dict[tuple[str, str | None], None] = {}
    for key in jobs_of(context.run, context.instance.get_dynamic_partitions("jobs")):
        try:
            job = job_folders.open(key).generate_settings(**given)
        except BadInput:
            continue  # the step that makes its clips or video will fail with this error
        wanted[job.model, job.variant] = None
    return list(wanted) or [("auto", None)]
