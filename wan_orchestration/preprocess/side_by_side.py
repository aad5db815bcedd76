"""Writes a video that shows a job's clips side by side: driving video, skeleton, face, mask, picture."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np

from wan_orchestration.errors import BadInput
from wan_orchestration.families.animate.family import REPLACEMENT_CLIPS
from wan_orchestration.families.choose import FIRST
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
    (replace). For a family without skeletons: the driving clip and the reference picture.
    Returns `output`. BadInput: clips are missing, unreadable or of different lengths.
    """
    result = folder / RESULT
    made = PreprocessResult.model_validate_json(result.read_text()) if result.is_file() else None
    family = made.settings.family if made else FIRST
    files = {name: folder / file for name, file in family.clips("replace").items() if file.endswith(".mp4")}
    names = [name for name, file in files.items() if name not in REPLACEMENT_CLIPS or file.is_file()]
    readers = {name: FrameReader(files[name]) for name in names}
    try:
        lengths = {name: reader.info.frames for name, reader in readers.items()}
        if len(set(lengths.values())) != 1:
            raise BadInput(f"{folder}: found {lengths} frames, {_MISMATCH}")
        lead = readers[family.driving].info
        video = _open_driving(made, driving, lead.frames)
        picture = read_image(folder / "src_ref.png")
        if "src_pose" in readers:
            picture = letterbox(picture, (lead.width, lead.height))
        with replacing(output) as part:
            segment = output.with_name(f".{output.name}.segment.mp4")
            try:
                write_segment(segment, _rows(readers, video, picture, lead.frames), Fraction(lead.fps))
                concatenate([segment], part, find_sound(lead.path), lead.start)
            finally:
                segment.unlink(missing_ok=True)
    finally:
        for reader in readers.values():
            reader.close()
    return output


def _open_driving(made: PreprocessResult | None, driving: Path | None, frames: int) -> DrivingVideo | None:
    if driving is None or made is None:
        return None
    video = DrivingVideo(driving, made.settings, made.settings.family.part("clips").choose_frames, least=1)
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
        if "src_pose" in clips:
            tiles.append(overlaid(clips.get("src_bg", picture), clips["src_pose"]))
            tiles.append(clips["src_face"])
        else:
            tiles += [*clips.values(), picture]
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
