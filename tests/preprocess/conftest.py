import pytest
from figures import SHARED


@pytest.fixture
def golden():
    """The folder of inputs and outputs of the published tools."""
    folder = SHARED / "golden"
    if not folder.is_dir():
        pytest.skip(f"golden data is not there: {folder}")
    return folder
