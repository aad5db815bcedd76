"""Writes a video that shows a job's clips side by side: driving video, skeleton, face, mask."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np

from wan_orchestration.errors import BadInput
from wan_orchestration.files import replacing
from wan_orchestration.preprocess.frames import DrivingVideo
from wan_orchestration.preprocess.geometry import letterbox
from wan_orchestration.preprocess.pipeline import RESULT
from wan_orchestration.protocol.messages import PreprocessResult
from wan_orchestration.video.concat import concatenate
from wan_orchestration.video.reader import FrameReader
from wan_orchestration.video.sound import find_sound
from wan_orchestration.video.stills import read_image
from wan_orchestration.video.writer import write_segment

HEIGHT = 360
_MISMATCH = "the clips are of different runs; preprocess again"


def write_side_by_side(folder: Path, output: Path, driving: Path | None = None) -> Path:
    """Writes `output` (mp4, with the sound of the pose clip) from the clips in `folder`.

    From left to right: the driving video, if it is given and the folder holds `preprocess.json`, whose settings chose
    its frames; the skeleton over the background (replace) or the reference picture (animate); the face; the mask
    (replace). Returns `output`. BadInput: clips are missing, unreadable or of different lengths.
    """
    names = ["src_pose", "src_face", *(name for name in ("src_bg", "src_mask") if (folder / f"{name}.mp4").is_file())]
    readers = {name: FrameReader(folder / f"{name}.mp4") for name in names}
    try:
        lengths = {name: reader.info.frames for name, reader in readers.items()}
        if len(set(lengths.values())) != 1:
            raise BadInput(f"{folder}: found {lengths} frames, {_MISMATCH}")
        pose = readers["src_pose"].info
        video = _open_driving(folder, driving, pose.frames)
        picture = letterbox(read_image(folder / "src_ref.png"), (pose.width, pose.height))
        with replacing(output) as part:
            segment = output.with_name(f".{output.name}.segment.mp4")
            try:
                write_segment(segment, _rows(readers, video, picture, pose.frames), Fraction(pose.fps))
                concatenate([segment], part, find_sound(pose.path), pose.start)
            finally:
                segment.unlink(missing_ok=True)
    finally:
        for reader in readers.values():
            reader.close()
    return output


def _open_driving(folder: Path, driving: Path | None, frames: int) -> DrivingVideo | None:
    result = folder / RESULT
    if driving is None or not result.is_file():
        return None
    video = DrivingVideo(driving, PreprocessResult.model_validate_json(result.read_text()).settings)
    if len(video) != frames:
        raise BadInput(f"{driving}: found {len(video)} frames, expected {frames} as in the clips, {_MISMATCH}")
    return video


def _rows(
    readers: dict[str, FrameReader], video: DrivingVideo | None, picture: np.ndarray, frames: int
) -> Iterator[np.ndarray]:
    driving_frames = iter(video) if video is not None else None
    for index in range(frames):
        clips = {name: reader.read([index])[0] for name, reader in readers.items()}
        tiles = [] if driving_frames is None else [next(driving_frames).pixels]
        tiles.append(overlaid(clips.get("src_bg", picture), clips["src_pose"]))
        tiles.append(clips["src_face"])
        if "src_mask" in clips:
            tiles.append(clips["src_mask"])
        yield np.hstack([_tile(tile) for tile in tiles])


def overlaid(background: np.ndarray, skeleton: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8: the skeleton's drawn pixels over the darkened background."""
    return np.where(skeleton.any(axis=-1, keepdims=True), skeleton, background // 2)


def _tile(picture: np.ndarray) -> np.ndarray:
    height, width = picture.shape[:2]
    # H.264 in yuv420p needs even sides.
    return cv2.resize(picture, (max(round(width * HEIGHT / height / 2), 1) * 2, HEIGHT), interpolation=cv2.INTER_AREA)
