import pytest

from wan_orchestration.defs.jobs.assets import observe
from wan_orchestration.defs.jobs.versions import JobVersion
from wan_orchestration.defs.partitions import register
from wan_orchestration.errors import BadInput
from wan_orchestration.jobs.folder import Job


def versions(folder) -> dict[str, str]:
    job = Job.open(folder)
    events = observe(job, JobVersion.of(job))
    return {event.asset_key.to_user_string(): event.tags["dagster/data_version"] for event in events}


def test_settings_and_inputs_have_versions_of_their_own(make_job, monkeypatch):
    folder = make_job(yaml="generate: {seed: 1}")
    first = versions(folder)
    assert versions(folder) == first

    (folder / "job.yaml").write_text("generate: {seed: 2}")
    settings_changed = versions(folder)
    assert settings_changed["job_inputs"] == first["job_inputs"]
    assert settings_changed["job_settings"] != first["job_settings"]

    monkeypatch.setenv("WAN_DEFAULT_SHIFT", "3")
    assert versions(folder)["job_settings"] != settings_changed["job_settings"]
    monkeypatch.setenv("WAN_DEFAULT_SHIFT", "5")
    monkeypatch.setenv("WAN_DEFAULT_OFFLOAD_MODEL", "false")  # the video would be the same
    assert versions(folder)["job_settings"] == settings_changed["job_settings"]

    (folder / "src_ref.png").write_bytes(b"another picture")
    assert versions(folder)["job_inputs"] != first["job_inputs"]


def test_a_partition_key_must_be_a_job_key(instance):
    register(instance, "dance-01")
    with pytest.raises(BadInput, match="job key 'a/b'"):
        register(instance, "a/b")
    assert instance.get_dynamic_partitions("jobs") == ["dance-01"]
