"""Writes jobs of drawn figures: clips, or a driving video with keypoints, and a picture of another character."""

from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from mini.drawing import draw_frame
from mini.figures import FPS
from mini.scene import Scene
from wan_orchestration.preprocess.geometry import crop_face
from wan_orchestration.preprocess.keypoints import PARTS, Pose
from wan_orchestration.video.writer import write_lossless, write_segment


def write_clips(folder: Path, scene: Scene, replaced: bool = False) -> Path:
    """A job of lossless clips; only the face's colours are rounded."""
    folder.mkdir(parents=True)
    write_lossless(folder / "src_pose.mp4", map(scene.pose, scene.frames), FPS)
    faces = map(scene.face, scene.frames)
    write_lossless(
        folder / "src_face.mp4", (crop_face(face, (0, 0, *face.shape[1::-1])) for face in faces), FPS, "yuv444"
    )
    Image.fromarray(scene.reference()).save(folder / "src_ref.png")
    if replaced:
        write_lossless(folder / "src_bg.mp4", map(scene.background, scene.frames), FPS)
        write_lossless(folder / "src_mask.mp4", (scene.mask(t) * 255 for t in scene.frames), FPS, "gray")
        (folder / "job.yaml").write_text(yaml.safe_dump({"mode": "replace"}))
    return folder


def write_raw(folder: Path, scene: Scene, scale: int = 2) -> Path:
    """A job without clips: `driving.mp4`, `scale` times as large, `reference.png`, and the keypoints of both."""
    folder.mkdir(parents=True)
    size = scene.size[0] * scale, scene.size[1] * scale
    frames = (draw_frame(scene.driving, scene.driver, t, size) for t in scene.frames)
    write_segment(folder / "driving.mp4", frames, FPS)
    poses = [scene.driving.pose(t, size) for t in scene.frames]
    _write_keypoints(folder / "keypoints.npz", poses)
    _write_keypoints(folder / "reference_keypoints.npz", [scene.standing.pose(0, size)])
    Image.fromarray(scene.reference(scale)).save(folder / "reference.png")
    return folder


def _write_keypoints(path: Path, poses: list[Pose]) -> None:
    parts = {part: np.stack([getattr(pose, part) for pose in poses]).astype(np.float32) for part in PARTS}
    np.savez_compressed(path, size=poses[0].size, **parts)
