"""The worker makes a preview of the first two seconds before the clips, for somebody who waits to look at them."""

from types import SimpleNamespace

import pytest
from figures import driving, picture_of, save_keypoints, walk
from PIL import Image

from wan_orchestration.preprocess.networks import Networks
from wan_orchestration.protocol.messages import PreprocessRequest, PreprocessResult
from wan_orchestration.settings.preprocess import PreprocessSettings
from wan_orchestration.worker import preprocess


@pytest.mark.parametrize("seen_from", [0, 5])
def test_the_preview_comes_first(tmp_path, seen_from):
    """If nobody is in the first two seconds, there is no preview, but the clips are made."""
    poses = walk(16)
    driving(tmp_path, poses, fps=2)
    for pose in poses[:seen_from]:
        for part in (pose.body, pose.left_hand, pose.right_hand, pose.face):
            part[:, 2] = 0
    save_keypoints(tmp_path / "keypoints.npz", poses)
    Image.fromarray(picture_of(poses[-1])).save(tmp_path / "reference.png")
    request = PreprocessRequest(
        job_id="job",
        driving=tmp_path / "driving.mp4",
        reference=tmp_path / "reference.png",
        output=tmp_path / "clips",
        preview=tmp_path / "preview",
        settings=PreprocessSettings(estimator="file", retarget="off", resolution_area=65536, start=0.5),
        snapshot=None,
        models_root=tmp_path,
    )
    phases: list[str] = []
    previews: list[PreprocessResult] = []

    def report(message: dict) -> None:
        if message["phase"] == "keypoints" and "keypoints" not in phases:
            assert not request.output.exists()
            file = tmp_path / "preview" / "preprocess.json"
            previews.extend(PreprocessResult.model_validate_json(one.read_text()) for one in [file] if one.exists())
        phases.append(message["phase"])

    log = SimpleNamespace(info=lambda text: None, error=lambda text: None)
    pipes = SimpleNamespace(report_custom_message=report, log=log)
    outcome = preprocess(request, pipes, lambda: False, Networks())
    assert outcome.result and outcome.result.frames == 15 and outcome.result.settings == request.settings
    assert phases[0] == "preview" and phases[-1] == "clips"
    assert [preview.frames for preview in previews] == ([4] if seen_from == 0 else [])
