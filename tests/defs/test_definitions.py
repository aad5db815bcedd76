import os
import subprocess
import sys
from pathlib import Path

import dagster as dg

ROOT = Path(__file__).parents[2]

HEAVY = "torch diffusers transformers modelscope modelscope_hub av cv2 onnxruntime pandas"

LOAD = f"""
import sys, time
import wan_orchestration.definitions
print(time.process_time())
wan_orchestration.definitions.definitions().get_repository_def()
print(*[name for name in {HEAVY!r}.split() if name in sys.modules])
"""


def test_the_code_location_is_light():
    """Measured in CPU time, with the start of Python, so that other work on the machine does not count."""
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
    times = []
    # The first process may have to compile bytecode.
    for _ in range(3):
        output = subprocess.run(
            [sys.executable, "-c", LOAD], env=environment, capture_output=True, text=True, check=True
        ).stdout
        seconds, heavy = output.split("\n")[:2]
        times.append(float(seconds))
        assert heavy == ""
    assert min(times) < 1.5


def test_everything_is_loaded(repository: dg.RepositoryDefinition):
    """`definitions` finds what Dagster's own, slower loader finds."""
    loaded = dg.load_from_defs_folder(path_within_project=ROOT / "wan_orchestration").get_repository_def()
    for kind in ("job_names", "asset_checks_defs_by_key", "assets_defs_by_key"):
        assert set(getattr(repository, kind)) == set(getattr(loaded, kind)), kind
    for kind in ("schedule_defs", "sensor_defs"):
        assert [d.name for d in getattr(repository, kind)] == [d.name for d in getattr(loaded, kind)]
    assert repository.get_top_level_resources().keys() == loaded.get_top_level_resources().keys()


def test_no_look_at_the_drop_folder_is_skipped(repository: dg.RepositoryDefinition):
    """The daemon looks every 5 s, give or take some milliseconds."""
    assert repository.get_sensor_def("drop_folder").minimum_interval_seconds == 4


def test_every_asset_is_described(repository: dg.RepositoryDefinition):
    nodes = {node.key.to_user_string(): node for node in repository.asset_graph.asset_nodes}
    per_job = {"job_inputs", "job_settings", "preprocessed_clips", "generated_video"}
    assert set(nodes) == per_job | {"weight_snapshot", "rejected_folders", "job_catalog", "warm_launches"}
    for name, node in nodes.items():
        assert node.description and node.kinds and node.owners and node.group_name != "default", name
        assert node.code_version or node.is_external, name
        assert node.is_partitioned == (name in per_job)


def test_dagster_accepts_the_project(tmp_path):
    """Uses the project's dagster.yaml and workspace.yaml. Only the warning about Dagster's own command is allowed."""
    (tmp_path / "dagster.yaml").write_bytes((ROOT / "dagster_home" / "dagster.yaml").read_bytes())
    done = subprocess.run(
        [sys.executable, "-m", "dagster", "definitions", "validate"],
        env={**os.environ, "DAGSTER_HOME": str(tmp_path)},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "All code locations passed validation" in done.stdout
    assert not [line for line in done.stdout.splitlines() if "arning" in line and "SupersessionWarning" not in line]
