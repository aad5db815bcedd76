"""A person's mask: grown as in training, or read from a file, or stood in for by a box."""

from pathlib import Path

import cv2
import numpy as np

from wan_orchestration.errors import BadInput
from wan_orchestration.preprocess.geometry import fit_picture
from wan_orchestration.preprocess.keypoints import Pose, bounds
from wan_orchestration.video.reader import FrameReader


def grow_mask(mask: np.ndarray, iterations: int, kernel: int, grid: tuple[int, int]) -> np.ndarray:
    """A person's mask dilated and squared off, so that its outline does not give the old shape away.

    `mask` is (H, W) uint8 of 0 and 1; so is the result. It is dilated `iterations` times by a square of `kernel`
    px; then its box is divided into `grid` (columns, rows) cells, and a cell with any of the mask becomes all
    mask. The box ends before its last row and column, as in the published tools. 0 iterations, or an empty mask:
    unchanged. A grid finer than the pixels of the box is taken as one cell per pixel.
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
    """(H, W) uint8 of 0 and 1: the box around everything that was found of the person, an eighth larger."""
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
    """Masks from a video beside the driving one: white is the person. Frame for frame, or as long by time."""

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
        """(H, W) uint8 of 0 and 1, fitted to `size` as the driving frame is."""
        place = source
        if self._by_time:
            place = int(np.abs(np.asarray(self._reader.times) - time).argmin())
        picture = self._reader.read([place])[0]
        return (fit_picture(picture, size, cv2.INTER_NEAREST)[..., 0] > 127).astype(np.uint8)

    def close(self) -> None:
        self._reader.close()
