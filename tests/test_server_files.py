"""The files of docs/server, as far as they can be tested without systemd and Docker."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from wan_orchestration.settings.environment import Environment
from wan_orchestration.settings.service import BatchSettings, FailureWebhookSettings

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "server"
PROGRAMS = Path(sys.executable).parent
UNITS = sorted(FOLDER.glob("*.service"))


def test_services_start_programs_that_are_there():
    compose = yaml.safe_load((FOLDER / "compose.yaml").read_text())
    commands = [service["command"] for service in compose["services"].values() if "command" in service]
    started = [re.search(r"^ExecStart=\S+/\.venv/bin/(.+)$", unit.read_text(), re.MULTILINE)[1] for unit in UNITS]
    assert sorted(command.split()[0] for command in commands) == sorted(command.split()[0] for command in started)
    for command in (*commands, *started):
        program, *flags = command.split()
        asked = [PROGRAMS / program, *flags, "--help"]
        assert "Usage" in subprocess.run(asked, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_systemd_accepts_the_units(unit, tmp_path):
    if not shutil.which("systemd-analyze"):
        pytest.skip("no systemd-analyze on this machine")
    text = unit.read_text().replace("/srv/wan-orchestration/.venv/bin", str(PROGRAMS))
    (tmp_path / unit.name).write_text(text)
    said = subprocess.run(
        ["systemd-analyze", "verify", tmp_path / unit.name], capture_output=True, text=True, check=False
    )
    assert unit.name not in said.stderr, said.stderr


def test_variables_are_known():
    text = (FOLDER / "wan-orchestration.env").read_text()
    named = set(re.findall(r"^(?:# )?([A-Z_]+)=", text, re.MULTILINE))
    known = {
        f"{model.model_config.get('env_prefix')}{field}".upper()
        for model in (Environment, BatchSettings, FailureWebhookSettings)
        for field in model.model_fields
    }
    assert named <= known | {"DAGSTER_HOME", "DAGSTER_PG_URL"}


def test_the_image_uses_postgres(tmp_path):
    dockerfile = (FOLDER / "Dockerfile").read_text()
    (edit,) = re.findall(r"^RUN (sed .+)$", dockerfile, re.MULTILINE)
    (tmp_path / "dagster_home").mkdir()
    shutil.copy(ROOT / "dagster_home" / "dagster.yaml", tmp_path / "dagster_home")
    subprocess.run(["bash", "-c", edit], cwd=tmp_path, check=True)
    instance = yaml.safe_load((tmp_path / "dagster_home" / "dagster.yaml").read_text())
    assert instance["storage"] == {"postgres": {"postgres_url": {"env": "DAGSTER_PG_URL"}}}
    copied = re.findall(r"^COPY (.+) \S+$", dockerfile, re.MULTILINE)
    ignored = (ROOT / ".dockerignore").read_text()
    for path in " ".join(copied).split():
        assert (ROOT / path).exists() and f"!{path}" in ignored
