import os
import shutil
from pathlib import Path

import pytest
from hub_server import SHARDS, UNNEEDED, VAE, diffusers_layout, original_layout, write_files

from wan_orchestration.errors import BadInput
from wan_orchestration.files import sha256
from wan_orchestration.weights.manifest import MANIFEST, FileEntry, Manifest
from wan_orchestration.weights.snapshot import open_snapshot

NEEDED = sorted(set(original_layout(8)) - set(UNNEEDED))


def test_original_layout(tmp_path: Path) -> None:
    files = original_layout()
    snapshot = open_snapshot(write_files(tmp_path / "snapshot", files))
    assert (snapshot.layout, snapshot.revision, snapshot.dtype) == ("original", None, "F32")
    assert snapshot.files == len(NEEDED)
    assert snapshot.bytes == sum(snapshot.parts.values()) == sum(len(files[name]) for name in NEEDED)
    assert snapshot.parts[VAE] == len(files[VAE]) and snapshot.source is None


def test_optional_parts_may_be_missing(tmp_path: Path) -> None:
    write_files(tmp_path, original_layout())
    (tmp_path / "relighting_lora.ckpt").unlink()
    shutil.rmtree(tmp_path / "process_checkpoint")
    assert open_snapshot(tmp_path, "v1").revision == "v1"


def test_diffusers_layout(tmp_path: Path) -> None:
    snapshot = open_snapshot(write_files(tmp_path, diffusers_layout()))
    assert (snapshot.layout, snapshot.dtype) == ("diffusers", "F32")
    assert snapshot.files == len(diffusers_layout()) - 1  # no scheduler


def test_fingerprint_follows_the_files(tmp_path: Path) -> None:
    write_files(tmp_path, original_layout())
    before = open_snapshot(tmp_path)
    (tmp_path / "README.md").write_text("changed")
    assert open_snapshot(tmp_path) == before
    os.utime(tmp_path / VAE, (0, 0))
    assert open_snapshot(tmp_path).fingerprint != before.fingerprint


def test_folder_of_something_else(tmp_path: Path) -> None:
    write_files(tmp_path, {"config.json": b"{}", "pytorch_model.bin": b"x"})
    with pytest.raises(
        BadInput, match=r"found config.json, pytorch_model.bin; expected config.json, diffusion.*model_ind"
    ):
        open_snapshot(tmp_path)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="nowhere does not exist"):
        open_snapshot(tmp_path / "nowhere")


@pytest.mark.parametrize("name", [name for name in NEEDED if "/" not in name and "lora" not in name])
def test_missing_file_is_named(tmp_path: Path, name: str) -> None:
    write_files(tmp_path, original_layout(100))
    (tmp_path / name).unlink()
    with pytest.raises(BadInput, match=f"{name} is missing"):
        open_snapshot(tmp_path)


@pytest.mark.parametrize("name", [name for name in diffusers_layout() if "/" in name and "scheduler" not in name])
def test_missing_file_of_the_diffusers_layout_is_named(tmp_path: Path, name: str) -> None:
    write_files(tmp_path, diffusers_layout())
    (tmp_path / name).unlink()
    with pytest.raises(BadInput, match="is missing") as caught:
        open_snapshot(tmp_path)
    assert Path(name).parent.name in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (VAE, b"", "is empty"),
        (VAE, original_layout()[VAE][:-50], "is cut off after"),
        (SHARDS[1], b"", "is empty"),
        (SHARDS[1], original_layout()[SHARDS[1]][:-1], "bytes, its header says"),
        ("config.json", b"{", "cannot be read as JSON"),
        ("config.json", b"[]", "holds a JSON list"),
        ("config.json", b'{"Code": 404, "Message": "no such file"}', "holds a server's error.*'no such file'"),
        ("google/umt5-xxl/tokenizer.json", b'{"error": "gated"}', "holds a server's error.*'gated'"),
        (VAE, b'{"error": "gated"}', "is a JSON text, not a PyTorch"),
        (SHARDS[1], b'{"error": {"code": 404}}', "is a JSON text .24 bytes., not a complete"),
        ("config.json", b'{"_class_name": "WanModel"}', "is a WanModel; expected WanAnimateModel"),
        ("diffusion_pytorch_model.safetensors.index.json", b'{"weight_map": {}}', "weight_map is missing or empty"),
        ("diffusion_pytorch_model.safetensors.index.json", b'{"weight_map": {"a": "../x"}}', "not a plain file name"),
        ("google/umt5-xxl/tokenizer.json", b"", "is empty"),
    ],
)
def test_damaged_file_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    write_files(tmp_path, original_layout() | {name: content})
    with pytest.raises(BadInput, match=message) as caught:
        open_snapshot(tmp_path)
    assert name in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "a Git LFS pointer"),
        (b"\n<!DOCTYPE html>\n<html><body>Sign in to this network</body></html>", "an HTML page"),
    ],
)
def test_the_content_that_replaces_a_file_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    """For each file that is read of either layout."""
    for layout in (original_layout(100), diffusers_layout()):
        folder = write_files(tmp_path / str(len(layout)), layout)
        for name in layout:
            if not name.startswith(("process_checkpoint", "scheduler", "relighting", "model_index", *UNNEEDED)):
                (folder / name).write_bytes(content)
                with pytest.raises(BadInput, match=rf"{Path(name).name} is {words}"):
                    open_snapshot(folder)
                (folder / name).write_bytes(layout[name])
        open_snapshot(folder)


def test_a_pickle_of_an_old_pytorch(tmp_path: Path) -> None:
    write_files(tmp_path, original_layout() | {VAE: b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."})
    assert open_snapshot(tmp_path).layout == "original"


def manifest_of(folder: Path) -> Manifest:
    files = {name: FileEntry(size=(folder / name).stat().st_size, sha256=sha256(folder / name)) for name in NEEDED}
    return Manifest(repo="owner/name", endpoint="https://hub", revision="v2", files=files)


def test_manifest_gives_the_revision_and_the_fingerprint(tmp_path: Path) -> None:
    manifest_of(write_files(tmp_path, original_layout())).write(tmp_path)
    before = open_snapshot(tmp_path)
    assert before.revision == "v2"
    os.utime(tmp_path / VAE, (0, 0))
    assert open_snapshot(tmp_path) == before


def test_manifest_tells_damage(tmp_path: Path) -> None:
    manifest = manifest_of(write_files(tmp_path, original_layout()))
    assert manifest.damage(tmp_path, hashes=True) is None
    content = (tmp_path / VAE).read_bytes()
    (tmp_path / VAE).write_bytes(bytes([content[0] ^ 1]) + content[1:])
    assert manifest.damage(tmp_path) is None
    assert f"{VAE} has SHA-256" in str(manifest.damage(tmp_path, hashes=True))
    (tmp_path / VAE).write_bytes(content[1:])
    assert f"{VAE} has {len(content) - 1} bytes instead of {len(content)}" in str(manifest.damage(tmp_path))
    (tmp_path / VAE).unlink()
    assert f"{VAE} is missing" in str(manifest.damage(tmp_path))


def test_manifest_cannot_point_outside(tmp_path: Path) -> None:
    manifest_of(write_files(tmp_path, original_layout())).write(tmp_path)
    text = (tmp_path / MANIFEST).read_text()
    (tmp_path / MANIFEST).write_text(text.replace(VAE, f"../{VAE}"))
    assert Manifest.read(tmp_path) is None


def test_small_published_snapshot() -> None:
    folder = Path(__file__).parents[3] / "shared/parity/snapshot"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not on this machine")
    snapshot = open_snapshot(folder)
    assert (snapshot.layout, snapshot.files, snapshot.dtype) == ("original", 11, "BF16")
