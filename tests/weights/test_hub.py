import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hub_server import (
    REPO,
    SHARDS,
    UNNEEDED,
    VAE,
    Fault,
    HubServer,
    diffusers_layout,
    original_layout,
    write_files,
)

from wan_orchestration.errors import BadInput
from wan_orchestration.settings.environment import Environment
from wan_orchestration.weights import hub, transfer
from wan_orchestration.weights.hub import DownloadError, download, resolve
from wan_orchestration.weights.manifest import MANIFEST, Manifest

NEEDED = sorted(set(original_layout(8)) - set(UNNEEDED))


@pytest.fixture
def server() -> Iterator[HubServer]:
    with HubServer(original_layout()) as server:
        yield server


@pytest.fixture
def env(server: HubServer, tmp_path: Path) -> Environment:
    return Environment(model_endpoint=server.url, models_root=tmp_path / "models", model_id=REPO)


@pytest.fixture
def folder(env: Environment) -> Path:
    assert env.models_root
    return env.models_root / "Wan-AI--Wan2.2-Animate-14B" / "master"


def files_in(folder: Path) -> list[str]:
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())


def download_in_another_process(env: Environment, tmp_path: Path) -> subprocess.Popen[bytes]:
    code = (
        "import sys; from wan_orchestration.settings.environment import Environment; "
        "from wan_orchestration.weights.hub import download; "
        "download(Environment.model_validate_json(sys.argv[1]), print)"
    )
    return subprocess.Popen([sys.executable, "-c", code, env.model_dump_json()], cwd=tmp_path)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "the other process does not get there"
        time.sleep(0.02)


def test_download_fetches_what_is_needed(server, env, folder, capfd) -> None:
    log: list[str] = []
    snapshot = download(env, log.append)
    assert (snapshot.path, snapshot.layout, snapshot.revision) == (folder, "original", "master")
    assert snapshot.source == f"Wan-AI/Wan2.2-Animate-14B of {server.url}"
    assert files_in(folder) == sorted([*NEEDED, MANIFEST])
    assert all((folder / name).read_bytes() == server.files[name] for name in NEEDED)
    assert sorted(name for name, _ in server.requests) == sorted([*NEEDED, "listing"])
    manifest = Manifest.read(folder)
    assert manifest and manifest.endpoint == server.url and sorted(manifest.files) == NEEDED
    assert "of Wan-AI/Wan2.2-Animate-14B@master from http" in log[0] and "is complete: 13 files" in log[-1]
    assert capfd.readouterr() == ("", "")


def test_download_of_the_diffusers_layout(tmp_path: Path) -> None:
    with HubServer(diffusers_layout() | {"assets/overview.png": b"x"}) as server:
        log: list[str] = []
        snapshot = download(Environment(model_endpoint=server.url, models_root=tmp_path), log.append)
    assert snapshot.layout == "diffusers"
    assert not (snapshot.path / "assets").exists()
    assert any("the relighting LoRA will not be available" in line for line in log)


def test_each_file_is_hashed_once(env, monkeypatch: pytest.MonkeyPatch) -> None:
    import hashlib

    from modelscope_hub import _download

    hashed = []

    class Counting:
        def __init__(self, data: bytes = b"") -> None:
            self.digest = hashlib.sha256(data)

        def update(self, data: bytes) -> None:
            hashed.append(len(data))
            self.digest.update(data)

        def hexdigest(self) -> str:
            return self.digest.hexdigest()

    monkeypatch.setattr(_download, "hashlib", type("hashlib", (), {"sha256": Counting}))
    monkeypatch.setattr(hub, "sha256", lambda file: pytest.fail(f"{file} is hashed again"))
    snapshot = download(env)
    assert sum(hashed) == snapshot.bytes


def test_progress_is_logged(server, env, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "REPORT_SECONDS", 0.1)
    server.faults[VAE] = Fault(delay=0.05)
    log: list[str] = []
    download(env, log.append)
    progress = [line for line in log if "MB/s" in line]
    assert 3 < len(progress) < 12
    assert all("of 0.00 GB" in line for line in progress) and "s left" in progress[0]


def test_cut_connection_resumes_in_the_same_call(server, env, folder) -> None:
    server.faults[VAE] = Fault(cut=50_000, times=1)
    download(env)
    assert server.asked_for(VAE) == [None, "bytes=50000-"]
    assert (folder / VAE).read_bytes() == server.files[VAE]


def test_resumes_as_long_as_bytes_arrive(server, env, folder) -> None:
    """More broken connections than the client accepts."""
    server.faults[VAE] = Fault(cut=30_000)
    log: list[str] = []
    download(env, log.append)
    assert server.asked_for(VAE) == [None, *(f"bytes={at}-" for at in range(30_000, 200_000, 30_000))]
    assert any("incomplete; resuming" in line for line in log)
    assert len(server.asked_for(SHARDS[0])) == 1


def test_time_limit_of_a_file_does_not_end_the_download(server, env, monkeypatch: pytest.MonkeyPatch) -> None:
    from modelscope_hub import _download

    monkeypatch.setattr(_download, "DOWNLOAD_TOTAL_TIMEOUT", 0.5)
    server.faults[VAE] = Fault(delay=0.1)
    assert resolve(env).files == len(NEEDED)
    assert len(server.asked_for(VAE)) > 1


def test_gives_up_when_nothing_arrives(server, env, folder) -> None:
    server.faults[VAE] = Fault(status=503)
    with pytest.raises(DownloadError, match=f"{VAE}: the download .* broke off .*run again to resume it"):
        download(env)
    assert Manifest.read(folder) is None
    server.faults.clear()
    requests = len(server.requests)
    download(env)
    assert [name for name, _ in server.requests[requests:]] == ["listing", VAE]


def test_killed_download_resumes_in_the_next_call(server, env, folder, tmp_path: Path) -> None:
    server.faults[VAE] = Fault(delay=0.1, times=1)
    process = download_in_another_process(env, tmp_path)
    partial = folder / f"{VAE}.incomplete"
    wait_until(lambda: partial.exists() and partial.stat().st_size > 50_000)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    had = partial.stat().st_size
    with pytest.raises(BadInput, match=r"was never downloaded completely.*weight_snapshot.*WAN_CHECKPOINT_DIR"):
        resolve(env, allow_download=False)
    resolve(env)
    assert server.asked_for(VAE) == [None, f"bytes={had}-"]
    assert (folder / VAE).read_bytes() == server.files[VAE]


def test_corrupt_file_is_not_kept(server, env, folder) -> None:
    server.faults[VAE] = Fault(corrupt=True)
    with pytest.raises(DownloadError, match=f"{VAE}: the content that the hub sends differs from its listing"):
        download(env)
    assert not list(folder.glob(f"{VAE}*")) and Manifest.read(folder) is None


def test_file_of_another_size_than_listed(server, env) -> None:
    server.faults[VAE] = Fault(listing={"Size": 17})
    with pytest.raises(DownloadError, match=f"{VAE}: the content that the hub sends differs from its listing"):
        download(env)


def test_listed_file_that_is_not_there(server, env) -> None:
    server.faults[VAE] = Fault(status=404)
    with pytest.raises(DownloadError, match=f"{VAE}: the hub lists this file but does not have it"):
        download(env)


@pytest.mark.parametrize("path", ["../evil.txt", "/etc/evil.txt", "google/../../evil.txt", "google\\..\\evil.txt"])
def test_listing_must_stay_inside(server, env, path: str) -> None:
    server.files[path] = b"evil"
    with pytest.raises(BadInput, match="would leave the snapshot's folder; nothing was downloaded"):
        download(env)
    assert [name for name, _ in server.requests] == ["listing"]
    assert not env.models_root.exists()


def test_a_page_in_place_of_the_listing(server, env) -> None:
    server.page = b"<!DOCTYPE html><html>Sign in</html>"
    with pytest.raises(DownloadError, match=r"file listing, but with '<!DOCTYPE html>.*Sign in.*sign-in page or proxy"):
        download(env)


def test_pattern_without_a_match(server, env) -> None:
    del server.files["models_t5_umt5-xxl-enc-bf16.pth"]
    with pytest.raises(BadInput, match=r"has no file 'models_t5_umt5-xxl-enc-bf16.pth'"):
        download(env)
    assert [name for name, _ in server.requests] == ["listing"]


def test_shard_that_the_hub_does_not_list(server, env, folder) -> None:
    del server.files[SHARDS[1]]
    with pytest.raises(BadInput, match=f"{SHARDS[1]} is missing"):
        download(env)
    assert Manifest.read(folder) is None


def test_listing_without_hashes(server, env, folder) -> None:
    server.faults[VAE] = Fault(listing={"Sha256": None})
    log: list[str] = []
    download(env, log.append)
    assert f"the hub lists no SHA-256 for {VAE}: only the size can be checked" in log
    manifest = Manifest.read(folder)
    assert manifest and manifest.damage(folder, hashes=True) is None


def test_listing_with_hashes_in_capitals(server, env, folder) -> None:
    download(env)
    manifest = Manifest.read(folder)
    assert manifest
    shutil.rmtree(folder)
    server.faults[VAE] = Fault(listing={"Sha256": manifest.files[VAE].sha256.upper()})
    download(env)
    assert Manifest.read(folder) == manifest


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("model_id", "Wan-AI/Wan9", "has no model 'Wan-AI/Wan9'.*check WAN_MODEL_ID"),
        ("model_revision", "v9", "has no revision 'v9', only master; check WAN_MODEL_REVISION"),
        ("model_id", "Wan9", "WAN_MODEL_ID: 'Wan9' is not a repository name"),
        ("model_id", "../..", "WAN_MODEL_ID"),
        ("model_revision", "..", "WAN_MODEL_REVISION"),
    ],
)
def test_wrong_repository(env, variable: str, value: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        download(env.model_copy(update={variable: value}))


def test_revision_is_one_folder(server, env) -> None:
    server.revisions = ("feature/x",)
    snapshot = download(env.model_copy(update={"model_revision": "feature/x"}))
    assert snapshot.path.relative_to(env.models_root).as_posix() == "Wan-AI--Wan2.2-Animate-14B/feature%2Fx"
    assert snapshot.revision == "feature/x"


@pytest.mark.parametrize("status", [401, 403])
def test_no_access(server, env, status: int) -> None:
    server.listing_status = status
    with pytest.raises(BadInput, match=r"refuses access to Wan-AI/.*MODELSCOPE_API_TOKEN"):
        download(env)


def test_no_route_to_the_hub(env) -> None:
    with pytest.raises(DownloadError, match=r"download from http://127.0.0.1:9 broke off.*WAN_CHECKPOINT_DIR"):
        download(env.model_copy(update={"model_endpoint": "http://127.0.0.1:9"}))


def test_too_little_space(env, folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6 - 1000, 1000))
    with pytest.raises(BadInput, match=r"needs 0.00 GB more.*WAN_MODELS_ROOT"):
        download(env)
    assert files_in(folder) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small disk takes root")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def test_disk_runs_full(server, env, small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if another program filled the disk during the download."""
    free = shutil.disk_usage("/")
    env = env.model_copy(update={"models_root": small_disk})
    with pytest.raises(BadInput, match=r"needs 0.00 GB more"):
        download(env)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: free)
        with pytest.raises(BadInput, match=r"cannot be written \(No space left on device.*The next download resumes"):
            download(env)
    subprocess.run(["mount", "-o", "remount,size=3m", small_disk], check=True)
    assert download(env).files == len(NEEDED)
    assert any(header for _, header in server.requests), "what was there is not fetched again"


def test_models_root_that_cannot_be_written(env, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match=r"cannot be written \(Not a directory"):
        download(env.model_copy(update={"models_root": tmp_path / "file"}))


def test_second_process_waits(server, env, folder, tmp_path: Path) -> None:
    server.faults[VAE] = Fault(delay=0.1)
    first = download_in_another_process(env, tmp_path)
    wait_until(lambda: VAE in [name for name, _ in server.requests])
    log: list[str] = []
    assert download(env, log.append).files == len(NEEDED)
    assert log == [f"another process is downloading {folder}; waiting for it"]
    assert first.wait() == 0
    assert sorted(name for name, _ in server.requests if name != "listing") == NEEDED


def test_second_process_takes_over(server, env, folder) -> None:
    """A dead process holds no lock."""
    folder.mkdir(parents=True)
    lock = folder.with_name(".master.lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    lock.close()
    assert download(env).files == len(NEEDED)


def test_complete_download_needs_no_network(env, folder) -> None:
    with HubServer(original_layout()) as server:
        downloaded = download(env.model_copy(update={"model_endpoint": server.url}))
    env = env.model_copy(update={"model_endpoint": "http://127.0.0.1:9"})
    started = time.monotonic()
    assert resolve(env, allow_download=False) == downloaded
    assert time.monotonic() - started < 0.5
    assert resolve(env, allow_download=False, verify=True) == downloaded


def test_tampered_file(server, env, folder) -> None:
    download(env)
    content = server.files[VAE]
    (folder / VAE).write_bytes(content[:1000] + b"tampered" + content[1008:])
    resolve(env, allow_download=False)
    with pytest.raises(BadInput, match=f"{VAE} has SHA-256 .* instead of"):
        resolve(env, allow_download=False, verify=True)
    (folder / VAE).write_bytes(content[:1000])
    with pytest.raises(BadInput, match=f"{VAE} has 1000 bytes instead of"):
        resolve(env, allow_download=False)
    log: list[str] = []
    resolve(env, log.append)
    assert "downloading what is missing" in log[0]
    assert (folder / VAE).read_bytes() == content and len(server.asked_for(SHARDS[0])) == 1


def test_checkpoint_dir_is_used_as_it_is(server, env, tmp_path: Path) -> None:
    write_files(tmp_path / "mine", original_layout())
    env = env.model_copy(update={"checkpoint_dir": tmp_path / "mine"})
    snapshot = resolve(env)
    assert (snapshot.path, snapshot.revision) == (tmp_path / "mine", None)
    (tmp_path / "mine" / VAE).unlink()
    with pytest.raises(BadInput, match=f"WAN_CHECKPOINT_DIR: .*{VAE} is missing"):
        resolve(env)
    assert server.requests == []


def test_import_is_light() -> None:
    code = "import sys, wan_orchestration.weights.hub; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"modelscope", "modelscope_hub", "torch", "requests"} & set(modules)
