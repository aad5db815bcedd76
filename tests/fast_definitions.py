"""The code location as it is, but that launches start `fast_worker`."""

from wan_orchestration.definitions import definitions  # noqa: F401
from wan_orchestration.launch import torchrun

torchrun.WORKER = "fast_worker"
