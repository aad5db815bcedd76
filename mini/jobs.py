"""Writes jobs of drawn figures: clips, or a driving video with keypoints, and pictures of other characters."""

import json
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from mini.drawing import draw_frame
from mini.figures import FPS
from mini.group import Group
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


def write_group(folder: Path, group: Group, scale: int = 2) -> Path:
    """A job that replaces each driver of a group: `driving.mp4`, `scale` times as large, the keypoints of all drivers,
    a mask video and a picture for each, and `job.yaml`."""
    folder.mkdir(parents=True)
    write_segment(folder / "driving.mp4", (group.picture(t, scale=scale) for t in group.frames), FPS)
    width, height = group.size[0] * scale, group.size[1] * scale
    canvas = {"canvas_width": width, "canvas_height": height}
    frames = [canvas | {"people": [_open_pose(pose) for pose in group.poses(t, scale)]} for t in group.frames]
    (folder / "keypoints.json").write_text(json.dumps({"frames": frames}))
    characters = []
    for index, one in enumerate(group.scenes):
        picture, mask, first = f"character_{index + 1}.png", f"mask_{index + 1}.mp4", group.poses(0)[index].body
        Image.fromarray(draw_frame(one.standing, one.character, 0, (height, height))).save(folder / picture)
        masks = (group.mask(index, t, scale) * 255 for t in group.frames)
        write_lossless(folder / mask, masks, FPS, "gray")
        x, y = (first[1, :2] / group.size).round(3).tolist()  # the neck
        characters.append({"picture": picture, "person": f"point:{x},{y}", "mask": mask})
    content = {"mode": "replace", "characters": characters, "preprocess": {"resolution_area": int(np.prod(group.size))}}
    (folder / "job.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return folder


def _open_pose(pose: Pose) -> dict[str, list[float]]:
    """A person as OpenPose writes them, except that the body has our 20 joints."""
    names = {"body": "pose", "left_hand": "hand_left", "right_hand": "hand_right", "face": "face"}
    return {f"{name}_keypoints_2d": getattr(pose, part).round(2).ravel().tolist() for part, name in names.items()}


def _write_keypoints(path: Path, poses: list[Pose]) -> None:
    parts = {part: np.stack([getattr(pose, part) for pose in poses]).astype(np.float32) for part in PARTS}
    np.savez_compressed(path, size=poses[0].size, **parts)
