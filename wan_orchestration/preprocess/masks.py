"""Masks of a person: grows them as in training, makes one from the person's box, reads them from a file."""

from pathlib import Path

import cv2
import numpy as np

from wan_orchestration.errors import BadInput
from wan_orchestration.preprocess.geometry import letterbox
from wan_orchestration.preprocess.keypoints import Pose, bounds
from wan_orchestration.video.reader import FrameReader


def grow_mask(mask: np.ndarray, iterations: int, kernel: int, grid: tuple[int, int]) -> np.ndarray:
    """Dilates a person's mask and fills it up to a grid, so that its outline does not show the person's shape.

    `mask` and the result are (H, W) uint8 of 0 and 1. The mask is dilated `iterations` times by a square of `kernel`
    px. Then its bounding box is divided into `grid` (columns, rows) cells of at least one pixel, and every cell that
    contains part of the mask is filled. As in the published tools, the box lacks its last row and column. With 0
    iterations the mask stays unchanged, and so does an empty mask.
    """
    if iterations == 0 or not mask.any():
        return mask
    dilated = cv2.dilate(mask, np.ones((kernel, kernel), np.uint8), iterations=iterations)
    rows, columns = np.flatnonzero(dilated.any(axis=1)), np.flatnonzero(dilated.any(axis=0))
    y0, y1, x0, x1 = rows[0], rows[-1], columns[0], columns[-1]
    step_x, step_y = max((x1 - x0) // grid[0], 1), max((y1 - y0) // grid[1], 1)
    grown = dilated.copy()
    for top in range(y0, y1, step_y):
        for left in range(x0, x1, step_x):
            cell = slice(top, min(top + step_y, y1)), slice(left, min(left + step_x, x1))
            if dilated[cell].any():
                grown[cell] = 1
    return grown


def box_mask(pose: Pose) -> np.ndarray:
    """(H, W) uint8 of 0 and 1: the box around all points of the person, grown by an eighth on each side."""
    width, height = pose.size
    mask = np.zeros((height, width), np.uint8)
    box = bounds(np.concatenate([pose.body, pose.left_hand, pose.right_hand, pose.face]), 0.3)
    if box is not None:
        x0, y0, x1, y1 = box
        grow_x, grow_y = (x1 - x0) / 8, (y1 - y0) / 8
        rows = slice(max(int(y0 - grow_y), 0), max(int(y1 + grow_y) + 1, 0))
        mask[rows, max(int(x0 - grow_x), 0) : max(int(x1 + grow_x) + 1, 0)] = 1
    return mask


class MaskFile:
    """Masks from a video beside the driving video, in which white is the person.

    Frames are paired by number if both videos have the same number of frames, else by time. BadInput: the numbers
    differ, and the durations differ by more than half a second.
    """

    def __init__(self, path: Path, video_frames: int, duration: float) -> None:
        self._reader = FrameReader(path)
        info = self._reader.info
        self._by_time = info.frames != video_frames
        if self._by_time and abs(info.duration - duration) > 0.5:
            self._reader.close()
            raise BadInput(
                f"{path}: found {info.frames} frames in {info.duration:.2f} s, expected the driving video's "
                f"{video_frames} in {duration:.2f} s"
            )

    def __call__(self, source: int, time: float, size: tuple[int, int]) -> np.ndarray:
        """(H, W) uint8 of 0 and 1, letterboxed to `size` (width, height) like the driving frame."""
        place = source
        if self._by_time:
            place = int(np.abs(np.asarray(self._reader.times) - time).argmin())
        picture = self._reader.read([place])[0]
        return (letterbox(picture, size, cv2.INTER_NEAREST)[..., 0] > 127).astype(np.uint8)

    def close(self) -> None:
        self._reader.close()
