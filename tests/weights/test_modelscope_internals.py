from importlib.metadata import version
from pathlib import Path

from wan_orchestration.weights.modelscope_internals import bytes_on_disk, turn_off_progress_bars

PINNED = f"modelscope-hub {version('modelscope-hub')}; see weights/modelscope_internals.py before you move the pin"


def test_the_client_draws_its_bars_with_the_name_that_is_replaced() -> None:
    from modelscope_hub import _download

    assert hasattr(_download, "tqdm"), f"_download.tqdm is gone in {PINNED}"
    turn_off_progress_bars()
    assert _download.tqdm(total=1).disable, f"the progress bars stay on in {PINNED}"


def test_the_client_names_partial_files_as_counted(tmp_path: Path) -> None:
    from modelscope_hub import _download

    source = Path(_download.__file__).read_text()
    named = 'target.suffix + ".incomplete"' in source and "{file_path}_{start}_{end}" in source
    assert named, f"partial files have other names in {PINNED}"
    (tmp_path / "a.bin.incomplete").write_bytes(b"123")
    (tmp_path / "a.bin_0_4").write_bytes(b"45")
    assert bytes_on_disk(tmp_path / "a.bin", 9) == 5
    (tmp_path / "a.bin").write_bytes(b"123456789")
    assert bytes_on_disk(tmp_path / "a.bin", 9) == 9
