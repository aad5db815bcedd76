"""The launches of this machine in the UI: those that work, and those that stay warm."""

from collections.abc import Sequence

import dagster as dg

from wan_orchestration.protocol import launches
from wan_orchestration.protocol.launches import LaunchInfo

warm_launches = dg.AssetSpec(
    "warm_launches",
    description="Launches of this machine that hold devices and models: those that work, and those that wait for the "
    "next run. `wan-animate workers` lists and stops them.",
    group_name="animation",
    kinds={"pytorch"},
    owners=["team:animation"],
)


@dg.sensor(
    name="warm_launches",
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Shows the launches of this machine in the asset warm_launches.",
)
def launches_sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult:
    found = launches.running(memory=True)
    # A changed idle time, or another job, makes no event.
    news = repr([(one.id, one.state, one.snapshot) for one in found])
    return dg.SensorResult(
        asset_events=[_table(found)] if news != (context.cursor or "[]") else [],
        cursor=news,
        skip_reason="\n".join(map(str, found)) or "there are no launches",
    )


@dg.definitions
def launches_definitions() -> dg.Definitions:
    return dg.Definitions(assets=[warm_launches], sensors=[launches_sensor])


def _table(found: Sequence[LaunchInfo]) -> dg.AssetMaterialization:
    rows = [dg.TableRecord(one.row()) for one in found]
    schema = dg.TableSchema([dg.TableColumn(name) for name in launches.COLUMNS])
    return dg.AssetMaterialization(
        warm_launches.key, metadata={"launches": len(rows), "table": dg.MetadataValue.table(rows, schema)}
    )
