from collections.abc import Iterator
from pathlib import Path

import pytest

from wan_orchestration.settings.environment import environment


@pytest.fixture(autouse=True)
def own_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keeps the progress files of launches out of the checkout."""
    monkeypatch.setenv("WAN_DATA_ROOT", str(tmp_path / "data"))
    environment.cache_clear()
    yield
    environment.cache_clear()
