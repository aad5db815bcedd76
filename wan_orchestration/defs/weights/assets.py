"""The weights."""

import dagster as dg
from pydantic import Field

from wan_orchestration.defs.failures import failures_in_words
from wan_orchestration.settings.environment import environment
from wan_orchestration.weights import hub


class WeightConfig(dg.Config):
    verify: bool = Field(
        default=False, description="Compare every byte of a finished download with its SHA-256 (minutes)."
    )


@dg.asset(
    group_name="animation",
    kinds={"pytorch", "file"},
    owners=["team:animation"],
    code_version="1",
)
def weight_snapshot(context: dg.AssetExecutionContext, config: WeightConfig) -> dg.MaterializeResult:
    """The Wan2.2-Animate weights: `WAN_CHECKPOINT_DIR` as it is, else downloaded from ModelScope and verified.

    A complete download is used as it is; an interrupted one resumes.
    """
    with failures_in_words(context, hub.DownloadError):
        snapshot = hub.resolve(environment(), context.log.info, verify=config.verify)
    sizes = [dg.TableRecord({"part": part, "megabytes": round(size / 1e6, 2)}) for part, size in snapshot.parts.items()]
    return dg.MaterializeResult(
        data_version=dg.DataVersion(snapshot.fingerprint),
        metadata={
            "layout": snapshot.layout,
            "revision": snapshot.revision or "used as it is",
            "from": snapshot.source or "WAN_CHECKPOINT_DIR",
            "bytes": snapshot.bytes,
            "sizes": dg.MetadataValue.table(sizes),
            "files": snapshot.files,
            "dtype": snapshot.dtype,
            "path": dg.MetadataValue.path(snapshot.path),
        },
    )
