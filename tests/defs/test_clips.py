import base64
from io import BytesIO
from types import SimpleNamespace

import dagster as dg
from PIL import Image, ImageSequence

from wan_orchestration.defs.clips.checks import CHECKS
from wan_orchestration.defs.resources import JobFolders
from wan_orchestration.defs.videos.assets import _up_to_date_clips
from wan_orchestration.jobs.folder import Job


def test_ready_clips_are_placed(make_job, materialize, data_root):
    folder = make_job("ready", face_frames=3)
    result = materialize("preprocessed_clips", key="ready")
    assert result.success
    placed = {path.name: path.read_bytes() for path in (data_root / "clips" / "ready").iterdir()}
    assert placed.pop("measures.json")
    assert placed == {path.name: path.read_bytes() for path in folder.iterdir()}
    (event,) = result.asset_materializations_for_node("preprocessed_clips")
    assert event.metadata["frames"].value == 5 and event.metadata["size"].value == "96x64"
    assert 1000 < len(event.metadata["contact_sheet"].value) < 50_000
    (warning,) = event.metadata["warnings"].records
    assert warning.data["what"].startswith("src_face.mp4: 3 frames, but src_pose.mp4 has 5; it is played forwards")


def test_the_data_version_follows_the_content_of_the_clips(make_job, materialize):
    def version() -> str:
        (event,) = materialize("preprocessed_clips", key="job").asset_materializations_for_node("preprocessed_clips")
        return event.tags["dagster/data_version"]

    folder = make_job("job")
    first = version()
    assert version() == first
    (folder / "src_ref.png").write_bytes((make_job("other", width=64) / "src_ref.png").read_bytes())
    assert version() == first, "the same picture"
    (folder / "src_face.mp4").write_bytes((make_job("third", face_frames=7) / "src_face.mp4").read_bytes())
    assert version() != first


def test_bad_clips_fail_with_a_reason_and_leave_nothing(make_job, materialize, reason, data_root):
    folder = make_job("bad")
    video = (folder / "src_pose.mp4").read_bytes()
    (folder / "src_pose.mp4").write_bytes(video[: len(video) // 2])
    assert "src_pose.mp4" in reason(materialize("preprocessed_clips", key="bad"))
    assert not (data_root / "clips").exists() or not list((data_root / "clips").iterdir())


def test_a_folder_that_is_missing_or_misnamed(materialize, reason):
    assert "no such job folder" in reason(materialize("preprocessed_clips", key="gone"))
    assert "job key '../clips'" in reason(materialize("preprocessed_clips", key="../clips"))


def test_clips_are_made_from_a_driving_video_and_a_picture(make_raw_job, materialize, data_root):
    make_raw_job("raw", confidence=0.9)
    result = materialize("preprocessed_clips", key="raw")
    assert result.success
    made = {path.name for path in (data_root / "clips" / "raw").iterdir()}
    assert {"src_pose.mp4", "src_face.mp4", "src_ref.png", "preprocess.json"} <= made
    (event,) = result.asset_materializations_for_node("preprocessed_clips")
    assert event.metadata["estimator"].value == "file" and event.metadata["person_found"].value == 1
    assert 1000 < len(event.metadata["contact_sheet"].value) < 50_000
    overlay = event.metadata["overlay"].value.removeprefix("![overlay](data:image/webp;base64,").removesuffix(")")
    with Image.open(BytesIO(base64.b64decode(overlay))) as webp:
        assert (webp.format, len(list(ImageSequence.Iterator(webp))), webp.height) == ("WEBP", 6, 160) and len(
            overlay
        ) < 50_000
    (again,) = materialize("preprocessed_clips", key="raw").asset_materializations_for_node("preprocessed_clips")
    assert again.tags["dagster/data_version"] == event.tags["dagster/data_version"]


def test_a_video_without_a_person_fails_with_a_reason(make_raw_job, materialize, reason, data_root):
    make_raw_job("empty", confidence=0.0)
    text = reason(materialize("preprocessed_clips", key="empty"))
    assert "driving.mp4" in text and "no person" in text.lower()
    assert not (data_root / "clips" / "empty").exists()


def test_the_video_makes_stale_clips_and_checks_them(make_job, data_root, instance):
    """Each run checks the clips that it makes, also of the same job."""
    job = Job.open(make_job("job"))

    @dg.asset
    def video(context: dg.AssetExecutionContext):
        clips = _up_to_date_clips(context, None, JobFolders(), job, SimpleNamespace(fingerprint="weights"))
        assert len(list(clips)) == 1

    for run in range(2):
        assert dg.materialize([video], instance=instance).success
        check = dg.AssetCheckKey(dg.AssetKey("preprocessed_clips"), next(iter(CHECKS)))
        assert len(instance.event_log_storage.get_asset_check_execution_history(check, limit=9)) == run + 1
