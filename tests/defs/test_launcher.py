"""Which launcher the environment chooses, and how it configures it."""

import pytest

from wan_orchestration.defs.resources import launcher
from wan_orchestration.errors import BadInput
from wan_orchestration.launch.gpus import Gpus
from wan_orchestration.launch.slurm import SlurmClient
from wan_orchestration.launch.torchrun import TorchrunClient
from wan_orchestration.settings.environment import environment


@pytest.fixture(autouse=True)
def fresh_environment():
    environment.cache_clear()
    yield
    environment.cache_clear()


def test_this_machine_by_default():
    assert launcher(Gpus()) == TorchrunClient(gpus=Gpus())


def test_a_cluster(monkeypatch):
    monkeypatch.setenv("WAN_LAUNCHER", "slurm")
    monkeypatch.setenv("WAN_SLURM_NODES", "2")
    monkeypatch.setenv("WAN_SLURM_PARTITION", "gpu")
    monkeypatch.setenv("WAN_SLURM_DIRECTIVES", '["--qos=high"]')
    assert launcher(Gpus()) == SlurmClient(nodes=2, partition="gpu", directives=["--qos=high"])


@pytest.mark.parametrize(
    "name, value, words",
    [
        ("WAN_SLURM_NODES", "two", "WAN_SLURM_NODES: found 'two', expected a valid integer"),
        ("WAN_SLURM_DIRECTIVES", "--qos=high", 'field "directives".* expected JSON'),
    ],
)
def test_a_bad_value(monkeypatch, name, value, words):
    monkeypatch.setenv("WAN_LAUNCHER", "slurm")
    monkeypatch.setenv(name, value)
    with pytest.raises(BadInput, match=words):
        launcher(Gpus())
