"""Opens the estimator that the settings name, or the best available one."""

from collections.abc import Callable
from pathlib import Path

from wan_orchestration.errors import BadInput
from wan_orchestration.preprocess.estimators import keypoint_file, vitpose
from wan_orchestration.preprocess.estimators.base import Estimator
from wan_orchestration.preprocess.estimators.light_models import light_files, light_models
from wan_orchestration.preprocess.networks import Networks
from wan_orchestration.settings.preprocess import PreprocessSettings


def open_estimator(
    settings: PreprocessSettings,
    driving: Path,
    video_frames: int,
    snapshot: Path | None,
    models_root: Path,
    log: Callable[[str], None],
    networks: Networks,
) -> Estimator:
    """Opens the estimator for the driving video. BadInput: its files are missing or unusable."""
    keypoints = keypoint_file.find_keypoints(driving, settings.keypoints)
    kind = settings.estimator
    if kind == "auto":
        kind = "vitpose" if vitpose.available(snapshot) else "file" if keypoints is not None else "light"
    if kind == "file":
        if keypoints is None:
            wanted = settings.keypoints or "keypoints.npz, keypoints.json or keypoints/"
            raise BadInput(f"{driving.parent}: estimator: file needs {wanted} beside the driving video")
        return keypoint_file.KeypointFile(keypoints, video_frames)
    if kind == "light":
        return open_light(settings.light_models, models_root, log, networks)
    if snapshot is None:
        raise BadInput(
            "estimator: vitpose needs a snapshot with process_checkpoint/: set WAN_CHECKPOINT_DIR, or use light"
        )
    return vitpose.open_vitpose(snapshot, settings.channel_order, settings.device, networks)


def open_picture_estimator(driving_estimator: Estimator, reference: Path) -> Estimator | None:
    """Opens the estimator for the reference picture: the one of the driving video, or if that reads a file, one for the
    file beside the picture. None: there is no such file.
    """
    if driving_estimator.name != "file":
        return driving_estimator
    keypoints = next(filter(Path.exists, keypoint_file.keypoint_files_of(reference)), None)
    return None if keypoints is None else keypoint_file.KeypointFile(keypoints, 1)


def open_light(folder: Path | None, models_root: Path, log: Callable[[str], None], networks: Networks) -> Estimator:
    """Opens the light estimator. The arguments and errors are those of `light_models`."""
    # LiteRT is slow to import.
    from wan_orchestration.preprocess.estimators.light import Light, LightNetworks  # noqa: PLC0415

    def load() -> LightNetworks:
        return LightNetworks(light_models(folder, models_root, log))

    return Light(networks.open("light", "cpu", light_files(folder, models_root), load))
