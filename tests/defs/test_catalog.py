"""The table of all jobs."""

from datetime import UTC, datetime

import dagster as dg
import pandas as pd

from wan_orchestration.protocol.messages import Quality, Result, Seconds
from wan_orchestration.settings.generate import GenerateSettings


def test_every_job_has_a_row(make_job, data_root, instance, materialize):
    for key in ("made", "failed", "queued", "fresh", "look"):
        make_job(key, yaml="{mode: animate, priority: 3}")
        instance.add_dynamic_partitions("jobs", [key])
    instance.add_dynamic_partitions("jobs", ["gone"])
    result = Result(
        job_id="made",
        status="succeeded",
        created_at=datetime.now(UTC),
        finished_at=datetime.now(UTC),
        frames=50,
        fps=25,
        seconds=Seconds(total=8),
        settings=GenerateSettings(seed=7),
        quality=Quality(frozen_frames=0, colour_drift=[0, 2.5], seam=1),
    )
    (data_root / "videos" / "made").mkdir(parents=True)
    (data_root / "videos" / "made" / "result.json").write_text(result.model_dump_json())
    tags = {"job/made": "content", "wan/devices": "cuda-0, cuda-1"}
    instance.add_run(dg.DagsterRun(job_name="x", tags=tags, status=dg.DagsterRunStatus.SUCCESS))
    instance.add_run(dg.DagsterRun(job_name="make_clips", tags={"job/look": "c"}, status=dg.DagsterRunStatus.SUCCESS))
    instance.add_run(dg.DagsterRun(job_name="x", tags={"job/failed": "c"}, status=dg.DagsterRunStatus.FAILURE))
    instance.add_run(
        dg.DagsterRun(job_name="x", tags={"dagster/partition": "queued"}, status=dg.DagsterRunStatus.NOT_STARTED)
    )

    (event,) = materialize("job_catalog").asset_materializations_for_node("job_catalog")
    table = pd.read_parquet(data_root / "catalog" / "jobs.parquet").set_index("job")
    assert dict(table["state"]) == {
        "made": "succeeded",
        "failed": "failed",
        "queued": "queued",
        "fresh": "waiting",
        "look": "ready",
        "gone": "waiting",
    }
    made = table.loc["made"]
    assert (made.duration, made.seconds, made.gpu_seconds, made.seed, made.colour_drift) == (2, 8, 16, 7, 2.5)
    assert made.priority == 3 and (made["model"], made["mode"]) == ("animate", "animate")
    assert table.loc["failed"].error == "the run's process ended" and "no such job folder" in table.loc["gone"].error
    assert list(pd.read_csv(data_root / "catalog" / "jobs.csv").job) == list(table.index)
    assert event.metadata["jobs"].value == 6 and event.metadata["succeeded"].value == 1
    assert len(event.metadata["table"].records) == 6
