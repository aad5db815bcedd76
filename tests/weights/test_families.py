"""Snapshots of Wan-Animate-2, and beside those of Wan2.2-Animate."""

from pathlib import Path

import pytest
from hub_server import (
    ANIMATE_2,
    BASE,
    DISTILLED,
    HubServer,
    animate_2_diffusers_layout,
    animate_2_layout,
    diffusers_layout,
    original_layout,
    write_files,
)

from wan_orchestration.errors import BadInput
from wan_orchestration.families.choose import configured
from wan_orchestration.settings.environment import Environment
from wan_orchestration.weights.hub import download, local_snapshot, resolve
from wan_orchestration.weights.manifest import Manifest
from wan_orchestration.weights.snapshot import open_snapshot

BLOCKS = {"base": "WanAnimate2Blocks", "distilled": "WanAnimate2DistilledBlocks"}


def test_both_checkpoints_in_one_folder(tmp_path: Path) -> None:
    write_files(tmp_path, animate_2_layout())
    base, distilled = (open_snapshot(tmp_path, variant=variant) for variant in ("base", "distilled"))
    assert (base.family, base.variant, base.layout, base.files) == ("animate-2", "base", "original", 6)
    assert base.transformer == tmp_path / BASE and distilled.transformer == tmp_path / DISTILLED
    assert base.file("vae") == tmp_path / "videomodel/Wan-AI/vae.pth"
    assert open_snapshot(tmp_path) == distilled and base.fingerprint != distilled.fingerprint
    (tmp_path / BASE).write_bytes(b"another file")
    assert open_snapshot(tmp_path, variant="distilled") == distilled
    (tmp_path / BASE).unlink()
    assert open_snapshot(tmp_path, variant="distilled") == distilled
    with pytest.raises(BadInput, match=r"has the checkpoint distilled of Wan-Animate-2, but not base \(wan_animate_2/"):
        open_snapshot(tmp_path, variant="base")
    (tmp_path / DISTILLED).unlink()
    with pytest.raises(BadInput, match=f"{DISTILLED} is missing"):
        open_snapshot(tmp_path)


@pytest.mark.parametrize("variant, other", [("base", "distilled"), ("distilled", "base")])
def test_diffusers_layout_names_its_variant(tmp_path: Path, variant: str, other: str) -> None:
    write_files(tmp_path, animate_2_diffusers_layout(BLOCKS[variant]))
    snapshot = open_snapshot(tmp_path)
    assert (snapshot.family, snapshot.variant, snapshot.layout) == ("animate-2", variant, "diffusers")
    with pytest.raises(BadInput, match=f"has the checkpoint {variant} of Wan-Animate-2, but not {other}; set variant"):
        open_snapshot(tmp_path, variant=other)
    (tmp_path / "modular_model_index.json").write_text("{}")
    with pytest.raises(BadInput, match="_blocks_class_name is None; expected WanAnimate2"):
        open_snapshot(tmp_path)


def test_the_family_that_auto_means(tmp_path: Path) -> None:
    folders = {
        "animate": [original_layout(8), diffusers_layout()],
        "animate-2": [animate_2_layout(), animate_2_diffusers_layout(BLOCKS["base"])],
    }
    for family, layouts in folders.items():
        for number, files in enumerate(layouts):
            folder = write_files(tmp_path / f"{family}-{number}", files)
            assert configured(folder, "own/fork").name == family
            assert configured(None, "own/fork", folder).name == family
    assert configured(tmp_path / "nowhere", ANIMATE_2).name == "animate"
    assert configured(None, f"{ANIMATE_2}-Diffusers").name == "animate-2"
    assert configured(None, "own/fork").name == "animate"


def test_only_the_wanted_checkpoint_is_downloaded_and_the_other_is_added(tmp_path: Path) -> None:
    with HubServer(animate_2_layout(), repo=ANIMATE_2) as server:
        # The first family is configured, so the repository is the family's own.
        env = Environment(model_endpoint=server.url, models_root=tmp_path, model_revision="v9")
        with pytest.raises(BadInput, match=r"`weight_snapshot` with model: animate-2 and variant: base to download"):
            resolve(env, allow_download=False, model="animate-2", variant="base")
        base = resolve(env, model="animate-2", variant="base")
        assert base.path == tmp_path / "Wan-AI--Wan2.2-Animate-2-14B/master" and base.variant == "base"
        assert not server.asked_for(DISTILLED) and len(server.requests) == 1 + base.files
        with pytest.raises(BadInput, match=r"Wan-Animate-2 \(distilled\) was never downloaded completely"):
            resolve(env, allow_download=False, model="animate-2", variant="distilled")
        complete = []

        def log(message: str) -> None:
            complete.append(resolve(env, allow_download=False, model="animate-2", variant="base") == base)

        before = len(server.requests)
        distilled = resolve(env, log, model="animate-2", variant="distilled")
        assert [name for name, _ in server.requests[before:]] == ["listing", DISTILLED]
        assert complete and all(complete), "the first checkpoint can be used during the download of the other"
        # The other way round, and with a file that both need changed on the hub.
        (base.path / BASE).unlink()
        assert resolve(env, allow_download=False, model="animate-2", variant="distilled") == distilled
        assert resolve(env, model="animate-2", variant="base") == base
        assert resolve(env, allow_download=False, model="animate-2", variant="distilled") == distilled
        server.files["videomodel/Wan-AI/umt5-xxl/tokenizer.json"] = b'{"changed": 1}'
        changed = env.model_copy(update={"model_id": ANIMATE_2, "model_revision": "master"})
        download(changed, variant="base")
        manifest = Manifest.read(base.path)
        assert manifest and BASE in manifest.files and DISTILLED not in manifest.files
    assert resolve(changed, allow_download=False, variant="base").fingerprint != base.fingerprint


def test_a_diffusers_repository_of_the_other_variant(tmp_path: Path) -> None:
    """Found out by its smallest file."""
    with HubServer(animate_2_diffusers_layout(BLOCKS["base"]), repo="own/fork") as server:
        env = Environment(model_endpoint=server.url, models_root=tmp_path, model_id="own/fork")
        with pytest.raises(BadInput, match=r"own/fork@master holds Wan-Animate-2, but Wan2.2-Animate is wanted"):
            resolve(env, model="animate")
        assert server.requests == [("listing", None)]
        with pytest.raises(BadInput, match=r"own/fork@master is a snapshot of Wan-Animate-2 \(base\), but .*distilled"):
            download(env, variant="distilled")
        assert [name for name, _ in server.requests[1:]] == ["listing", "modular_model_index.json"]
        assert resolve(env).variant == "base", "a fork is what its files show"
        assert (
            resolve(env, allow_download=False, model="animate-2", variant="base").path == tmp_path / "own--fork/master"
        )


def test_families_side_by_side(tmp_path: Path) -> None:
    with HubServer(animate_2_layout(), repo=ANIMATE_2) as server:
        env = Environment(model_endpoint=server.url, models_root=tmp_path / "models", checkpoint_dir=tmp_path / "first")
        write_files(tmp_path / "first", original_layout(8))
        first = resolve(env, model="animate", variant="distilled")
        words = (
            r"needs Wan-Animate-2 \(base\), but WAN_CHECKPOINT_DIR is a snapshot of Wan2.2-Animate; .*model: animate-2"
        )
        with pytest.raises(BadInput, match=words):
            resolve(env, allow_download=False, model="animate-2", variant="base")
        second = resolve(env, model="animate-2", variant="base")
    assert resolve(env, allow_download=False) == first and local_snapshot(env) == first.path
    assert resolve(env, allow_download=False, model="animate-2", variant="base") == second
    # The other way round: the first family is not there.
    env = Environment(models_root=tmp_path / "empty", checkpoint_dir=second.path)
    assert resolve(env, variant="base") == second and local_snapshot(env) is None
    with pytest.raises(BadInput, match=r"is a snapshot of Wan-Animate-2 \(base\); set variant: base, or .*distilled"):
        resolve(env, variant="distilled")
    with pytest.raises(BadInput, match=r"needs Wan2.2-Animate, but .* is a snapshot of Wan-Animate-2; .*: animate"):
        resolve(env, allow_download=False, model="animate")


def test_the_small_published_snapshot() -> None:
    folder = Path(__file__).parents[3] / "shared/parity2/snapshot"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not on this machine")
    found = [open_snapshot(folder, variant=variant) for variant in ("base", "distilled")]
    assert [(one.variant, one.files, one.dtype) for one in found] == [("base", 8, "BF16"), ("distilled", 8, "BF16")]
