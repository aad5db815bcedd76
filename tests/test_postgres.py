"""The commented block of dagster.yaml against a real Postgres: run with -m heavy where its programs are installed."""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from wan_orchestration.defs.jobs.sensors import drop_folder
from wan_orchestration.settings.environment import environment

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.heavy


def program(name: str) -> str:
    places = [
        *sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True),
        *map(Path, os.environ["PATH"].split(":")),
    ]
    found = next((place / name for place in places if (place / name).is_file()), None)
    if found is None:
        pytest.skip(f"no {name} on this machine")
    return str(found)


@pytest.fixture(scope="module")
def postgres(tmp_path_factory) -> Iterator[str]:
    """The URL of a database of its own."""
    pytest.importorskip("dagster_postgres")
    folder = tmp_path_factory.mktemp("postgres")
    # The server refuses to run as root.
    user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    for place in (folder, *folder.parents[:2]):
        place.chmod(0o755)
    if user:
        shutil.chown(folder, "postgres")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    run = {"check": True, "capture_output": True, "cwd": folder}
    subprocess.run([*user, program("initdb"), "-D", folder / "data", "-U", "wan", "--auth=trust"], **run)
    control = [*user, program("pg_ctl"), "-D", folder / "data", "-w"]
    options = f"-c listen_addresses=127.0.0.1 -p {port} -c unix_socket_directories={folder}"
    subprocess.run([*control, "-l", folder / "log", "-o", options, "start"], check=True, stdout=subprocess.DEVNULL)
    try:
        yield f"postgresql+psycopg2://wan@127.0.0.1:{port}/postgres"
    finally:
        subprocess.run([*control, "-m", "fast", "stop"], check=False, stdout=subprocess.DEVNULL)


def test_the_block_works_as_it_is_written(postgres, tmp_path, tiny_snapshot, make_job, monkeypatch):
    text = (ROOT / "dagster_home" / "dagster.yaml").read_text()
    block = text[text.index("#storage:") : text.index("\n\n", text.index("#storage:"))]
    assert len(block.splitlines()) == 3
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "dagster.yaml").write_text(text.replace(block, block.replace("#", "")))
    for name, value in {
        "DAGSTER_PG_URL": postgres,
        "DAGSTER_HOME": str(tmp_path / "home"),
        "WAN_DATA_ROOT": str(tmp_path),
        "WAN_CHECKPOINT_DIR": str(tiny_snapshot),
        "WAN_DEFAULT_SAMPLING_STEPS": "1",
        "WAN_DROP_SETTLE_SECONDS": "0",
    }.items():
        monkeypatch.setenv(name, value)
    environment.cache_clear()
    make_job("one")
    with dg.DagsterInstance.from_config(str(tmp_path / "home")) as instance:
        assert "postgres" in type(instance.event_log_storage).__module__
        first = drop_folder(dg.build_sensor_context(instance=instance))
        assert isinstance(first, dg.SensorResult)
        assert [request.tags["dagster/partition"] for request in first.run_requests] == ["one"]

    done = subprocess.run(
        [sys.executable, "-m", "wan_orchestration.cli.main", "batch"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert "1 of 1 videos were made" in done.stdout
    again = subprocess.run([sys.executable, "-m", "wan_orchestration.cli.main", "batch"], cwd=ROOT, check=False)
    assert again.returncode == 3

    with dg.DagsterInstance.from_config(str(tmp_path / "home")) as instance:
        assert instance.get_materialized_partitions(dg.AssetKey("generated_video")) == {"one"}
        second = drop_folder(dg.build_sensor_context(instance=instance))
        assert isinstance(second, dg.SensorResult)
        assert not second.run_requests, "the batch has run it"
    environment.cache_clear()
