"""Speed and memory of preprocessing.

python benchmarks/preprocess.py networks [--frames 12] [--blocks 32] [--size 1280x720]
    compares our order of work with the published one (all frames in memory, one at a time, frame 0 twice), on the
    same drawn video and random networks of the real size
python benchmarks/preprocess.py video DRIVING REFERENCE [--models-root DIR]
    frames per second and peak memory of the light estimator on a real video
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
from preprocess_networks import BLOCKS, write_networks

from wan_orchestration.preprocess.drawing import draw_skeleton
from wan_orchestration.preprocess.estimators.vitpose import (
    DETECTOR,
    POSE,
    detector_input,
    people,
    pose_input,
    pose_window,
)
from wan_orchestration.preprocess.geometry import crop_face, face_box
from wan_orchestration.preprocess.keypoints import Pose
from wan_orchestration.preprocess.pipeline import preprocess
from wan_orchestration.settings.preprocess import PreprocessSettings
from wan_orchestration.video.reader import iter_frames
from wan_orchestration.video.writer import write_lossless, write_segment


def published_decode(maps: np.ndarray, centre: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Blurs each heatmap whole, one after another."""
    points = np.zeros((len(maps), 3))
    for i, heatmap in enumerate(maps):
        y, x = divmod(int(heatmap.argmax()), 48)
        points[i] = x, y, heatmap[y, x]
        padded = cv2.copyMakeBorder(heatmap, 5, 5, 5, 5, cv2.BORDER_CONSTANT)
        h = cv2.GaussianBlur(padded, (11, 11), 0)[5:-5, 5:-5]
        h = np.log(np.maximum(h * (heatmap.max() / h.max()), 1e-10))
        if 1 < x < 46 and 1 < y < 62:
            dx, dy = (h[y, x + 1] - h[y, x - 1]) / 2, (h[y + 1, x] - h[y - 1, x]) / 2
            dxx = (h[y, x + 2] - 2 * h[y, x] + h[y, x - 2]) / 4
            dyy = (h[y + 2, x] - 2 * h[y, x] + h[y - 2, x]) / 4
            dxy = (h[y + 1, x + 1] - h[y - 1, x + 1] - h[y + 1, x - 1] + h[y - 1, x - 1]) / 4
            hessian = np.array([[dxx, dxy], [dxy, dyy]])
            if np.linalg.det(hessian) != 0:
                points[i, :2] -= np.linalg.inv(hessian) @ (dx, dy)
    points[:, :2] = points[:, :2] * (size / (48, 64)) + centre - size / 2
    return points


def published_flow(driving: Path, snapshot: Path, output: Path) -> int:
    """The published order of work, without its retargeting and its lossy writer."""
    detector, network = (onnxruntime.InferenceSession(snapshot / path) for path in (DETECTOR, POSE))
    frames = list(iter_frames(driving))
    poses = []
    for frame in [frames[0], *frames]:
        size = frame.shape[1], frame.shape[0]
        rows = detector.run(None, {"input": detector_input(frame)[None]})[0][0]
        box = max(people(rows, size), key=lambda person: person.area).box
        window = pose_window(box, size)
        maps = network.run(None, {"input": pose_input(frame, *window, "published")[None]})[0][0]
        poses.append(Pose.from_wholebody(published_decode(maps, *window), size))
    poses = poses[1:]
    faces = [crop_face(frame, face_box(pose.face, pose.size)) for frame, pose in zip(frames, poses)]
    drawn = [draw_skeleton(np.zeros_like(frame), pose) for frame, pose in zip(frames, poses)]
    output.mkdir()
    write_segment(output / "src_pose.mp4", drawn, Fraction(30))
    write_segment(output / "src_face.mp4", faces, Fraction(30))
    return len(frames)


def drawn_video(path: Path, size: tuple[int, int], frames: int) -> None:
    noise = np.random.default_rng(0).integers(0, 60, (size[1] // 8, size[0] // 8, 3), np.uint8)
    ground = cv2.resize(noise, size, interpolation=cv2.INTER_CUBIC)

    def pictures():
        for i in range(frames):
            picture = ground.copy()
            cv2.ellipse(
                picture,
                (size[0] // 2 + 2 * i, size[1] // 2),
                (size[0] // 10, size[1] // 3),
                0,
                0,
                360,
                (200, 90, 60),
                -1,
            )
            yield picture

    write_lossless(path, pictures(), Fraction(30))


def networks(arguments: argparse.Namespace) -> None:
    """Each flow runs in its own process, so its peak memory is its own."""
    with tempfile.TemporaryDirectory() as folder:
        job = Path(folder)
        size = tuple(map(int, arguments.size.split("x")))
        drawn_video(job / "driving.mp4", size, arguments.frames)
        cv2.imwrite(str(job / "reference.png"), np.full((size[1], size[0], 3), 128, np.uint8))
        cells = np.random.default_rng(1).uniform((12, 8), (36, 56), (133, 2))
        write_networks(job / "snapshot", (250, 80, 390, 560), cells, arguments.blocks)
        for flow in ("published", "ours"):
            command = [sys.executable, __file__, "flow", flow, folder]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            print(f"{flow:10}", done.stdout.strip().splitlines()[-1], flush=True)


def flow(arguments: argparse.Namespace) -> None:
    job = Path(arguments.job)
    started = time.monotonic()
    if arguments.flow == "published":
        frames = published_flow(job / "driving.mp4", job / "snapshot", job / "published")
    else:
        settings = PreprocessSettings(estimator="vitpose", retarget="off", resolution_area=1280 * 720)
        result = preprocess(
            job / "driving.mp4",
            job / "reference.png",
            job / "ours",
            settings,
            snapshot=job / "snapshot",
            models_root=job,
        )
        frames = result.frames
    _report(frames, time.monotonic() - started)


def video(arguments: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        settings = PreprocessSettings(estimator="light")
        started = time.monotonic()
        result = preprocess(
            arguments.driving,
            arguments.reference,
            Path(folder) / "clips",
            settings,
            snapshot=None,
            models_root=arguments.models_root,
        )
        _report(result.frames, time.monotonic() - started)


def _report(frames: int, seconds: float) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"frames": frames, "fps": round(frames / seconds, 2), "peak_mib": round(peak)}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("networks")
    one.add_argument("--frames", type=int, default=12)
    one.add_argument("--blocks", type=int, default=BLOCKS)
    one.add_argument("--size", default="1280x720")
    one.set_defaults(run=networks)
    one = commands.add_parser("video")
    one.add_argument("driving", type=Path)
    one.add_argument("reference", type=Path)
    one.add_argument("--models-root", type=Path, default=Path("data/models"))
    one.set_defaults(run=video)
    one = commands.add_parser("flow")
    one.add_argument("flow")
    one.add_argument("job")
    one.set_defaults(run=flow)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
