"""Growing a person's mask as in training: dilation, then filling the cells of a grid over its box."""

import cv2
import numpy as np


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
