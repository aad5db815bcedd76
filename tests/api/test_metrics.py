import dagster as dg
from api_server import JOBS
from prometheus_client.parser import text_string_to_metric_families

from wan_orchestration.api import metrics


def read(api) -> dict:
    answer = api.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    families = text_string_to_metric_families(answer.text)
    return {(s.name, *s.labels.values()): s.value for family in families for s in family.samples}


def test_runs_are_counted(api, add_job, report_event, finish):
    for key in ("m-wait", "m-run", "m-good", "m-bad", "m-look"):
        body = {"src_root_path": f"data/jobs/{add_job(key)}", "review": key == "m-look"}
        assert api.post(JOBS, json=body).status_code == 202
    report_event("m-look", dg.DagsterEventType.RUN_START)
    report_event("m-look", dg.DagsterEventType.RUN_SUCCESS)
    report_event("m-run", dg.DagsterEventType.RUN_START)
    finish("m-good")
    assert read(api)["wan_runs_ended_total", "succeeded"] == 1
    report_event("m-bad", dg.DagsterEventType.RUN_CANCELED)
    for _ in range(2):
        numbers = read(api)
        assert numbers["wan_runs", "queued"] == 1 and numbers["wan_runs", "running"] == 1
        assert numbers["wan_runs_ended_total", "succeeded"] == 1
        assert numbers["wan_runs_ended_total", "cancelled"] == numbers["wan_runs_ended_total", "ready"] == 1
        assert numbers["wan_run_seconds_count",] == 1
        assert numbers["wan_run_seconds_bucket", "10.0"] == 1


def test_gpus_are_measured(tmp_path, monkeypatch):
    script = tmp_path / "nvidia-smi"
    script.write_text("#!/bin/sh\necho '0, 93, 40960, 81559'\necho '1, [N/A], 1, 81559'\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    families = {family.name: family.samples for family in metrics._gpus()}
    assert [sample.value for sample in families["wan_gpu_utilization_ratio"]] == [0.93]
    assert [sample.value for sample in families["wan_gpu_memory_used_bytes"]] == [40960 * 2**20, 2**20]
