"""The table of all jobs."""

from collections import Counter

import dagster as dg

from wan_orchestration.defs.catalog.rows import COLUMNS, rows
from wan_orchestration.defs.videos.assets import generated_video
from wan_orchestration.files import replacing
from wan_orchestration.settings.environment import environment

IN_THE_UI = ("job", "state", "model", "mode", "frames", "duration", "seconds", "gpu_seconds", "error")
SHOWN = 500
"""Rows of the table in the UI: the jobs registered last. Dagster stores this table in its database."""


@dg.asset(
    deps=[generated_video],
    group_name="animation",
    kinds={"pandas", "parquet"},
    owners=["team:animation"],
    code_version="1",
)
def job_catalog(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    """One row per job: its state, settings, size, quality and cost, and why it failed.

    Written to `data/catalog/jobs.parquet` and `jobs.csv`.
    """
    import pandas as pd  # noqa: PLC0415 (takes a third of a second)

    found = list(rows(context.instance))
    table = pd.DataFrame(found, columns=pd.Index(COLUMNS)).astype(COLUMNS)
    folder = environment().data_root / "catalog"
    with replacing(folder / "jobs.parquet") as part:
        table.to_parquet(part, index=False)
    with replacing(folder / "jobs.csv") as part:
        table.to_csv(part, index=False)
    shown = [dg.TableRecord({name: row[name] for name in IN_THE_UI}) for row in found[-SHOWN:][::-1]]
    return dg.MaterializeResult(
        metadata={
            "jobs": len(found),
            **Counter(row["state"] for row in found),
            "gpu_hours": round(sum(row["gpu_seconds"] or 0 for row in found) / 3600, 4),
            "parquet": dg.MetadataValue.path(folder / "jobs.parquet"),
            "csv": dg.MetadataValue.path(folder / "jobs.csv"),
            "table": dg.MetadataValue.table(shown),
        }
    )


catalog_job = dg.define_asset_job("update_catalog", selection=[job_catalog])

# Off by default, because the table can also be made by hand.
hourly_catalog = dg.ScheduleDefinition(name="hourly_catalog", job=catalog_job, cron_schedule="5 * * * *")
