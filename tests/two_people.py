"""A job whose driving video shows two drawn people: number 1, the larger one, on the left, number 2 on the right."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from mini.drawing import draw_frame, silhouette
from mini.figures import FPS, Build, Figure, Look, perform, stand
from wan_orchestration.preprocess.keypoints import PARTS, Pose
from wan_orchestration.video.writer import write_lossless, write_segment

SIZE = (384, 256)
"""Width and height of the driving video, px."""
PEOPLE = ((-0.36, 1.0), (0.36, 0.82))
"""Of each person: place in heights of the picture from its middle, and size."""
OPENPOSE = {
    "body": "pose_keypoints_2d",
    "left_hand": "hand_left_keypoints_2d",
    "right_hand": "hand_right_keypoints_2d",
    "face": "face_keypoints_2d",
}


def write_two_people(folder: Path, frames: int = 90, seed: int = 5) -> Path:
    """`driving.mp4`, its `keypoints.json`, a mask of both people, a picture of a third character, and its keypoints."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    people = []
    for place, zoom in PEOPLE:
        act = perform(rng, frames)
        build = replace(Build.draw(rng), zoom=zoom)
        people.append((Figure(build, replace(act, hips=act.hips + np.array([place, 0]))), Look.draw(rng)))

    def drawn(t: int) -> np.ndarray:
        picture = None
        for figure, look in people:
            picture = draw_frame(figure, look, t, SIZE, picture)
        assert picture is not None
        return picture

    write_segment(folder / "driving.mp4", map(drawn, range(frames)), FPS)
    masks = (np.maximum(*(silhouette(*person, t, SIZE) for person in people)) * 255 for t in range(frames))
    write_lossless(folder / "mask.mp4", masks, FPS, "gray")
    poses = [[figure.pose(t, SIZE) for figure, _ in people] for t in range(frames)]
    content = {"fps": FPS, "frames": [{"people": [_openpose(pose) for pose in frame]} for frame in poses]}
    (folder / "keypoints.json").write_text(json.dumps(content))
    standing, square = Figure(Build.draw(rng), stand(rng)), (256, 256)
    Image.fromarray(draw_frame(standing, Look.draw(rng), 0, square)).save(folder / "reference.png")
    parts = {part: getattr(standing.pose(0, square), part)[None] for part in PARTS}
    np.savez_compressed(folder / "reference_keypoints.npz", size=square, **parts)
    return folder


def _openpose(pose: Pose) -> dict[str, list[float]]:
    return {name: getattr(pose, part).round(2).ravel().tolist() for part, name in OPENPOSE.items()}
