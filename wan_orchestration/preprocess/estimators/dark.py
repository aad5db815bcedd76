"""Keypoints from heatmaps with sub-pixel accuracy: DARK (Zhang et al., CVPR 2020), as ViTPose uses it."""

import cv2
import numpy as np

_REACH = 2
"""Cells on each side of the peak that the Newton step uses."""
_KERNEL = cv2.getGaussianKernel(11, 2.0).ravel()
_PAD = _REACH + len(_KERNEL) // 2
# (5, 15) weights that blur, along one axis, 15 cells into the 5 cells around a peak.
_BLUR = np.stack([np.pad(_KERNEL, (row, 2 * _REACH - row)) for row in range(2 * _REACH + 1)])


def decode(heatmaps: np.ndarray, centres: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Peaks of (N, K, h, w) heatmaps, as (N, K, 3) float64: x, y in px of the picture, height of the peak.

    `centres` and `sizes` are (N, 2) px: the window of the picture that each set of heatmaps covers. For a map without
    a positive value, the result is the position of cell (-1, -1).

    Method: blur each map (11x11, sigma 2), take its logarithm, and make one Newton step from the highest cell.
    """
    count, points, height, width = heatmaps.shape
    flat = heatmaps.reshape(count * points, height, width)
    peak = flat.reshape(len(flat), -1).argmax(axis=1)
    y, x = np.divmod(peak, width)
    top = flat.reshape(len(flat), -1)[np.arange(len(flat)), peak].astype(np.float64)
    cell = np.stack([x, y], axis=1).astype(np.float64)
    inner = (top > 0) & (x > 1) & (x < width - 2) & (y > 1) & (y < height - 2)
    cell[inner] -= _newton_step(flat[inner], x[inner], y[inner])
    cell[top <= 0] = -1
    cell = cell.reshape(count, points, 2) * (sizes / (width, height))[:, None] + (centres - sizes / 2)[:, None]
    return np.concatenate([cell, top.reshape(count, points, 1)], axis=2)


def _newton_step(maps: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(M, 2): inverse Hessian times gradient of the log of the blurred maps at cells (x, y).

    Blurs only the cells around the peak. DARK also rescales the blurred map to its old maximum. In the logarithm that
    factor is a constant, so the derivatives do not depend on it.
    """
    span = np.arange(-_PAD, _PAD + 1)
    rows, columns = (y[:, None] + span)[:, :, None], (x[:, None] + span)[:, None]
    height, width = maps.shape[1:]
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    patches = maps[np.arange(len(maps))[:, None, None], rows.clip(0, height - 1), columns.clip(0, width - 1)]
    patches = np.where(inside, patches, 0)
    log = np.log(np.maximum(_BLUR @ patches @ _BLUR.T, 1e-10))

    def at(down: int, right: int) -> np.ndarray:
        return log[:, _REACH + down, _REACH + right]

    dx, dy = (at(0, 1) - at(0, -1)) / 2, (at(1, 0) - at(-1, 0)) / 2
    dxx = (at(0, 2) - 2 * at(0, 0) + at(0, -2)) / 4
    dyy = (at(2, 0) - 2 * at(0, 0) + at(-2, 0)) / 4
    dxy = (at(1, 1) - at(-1, 1) - at(1, -1) + at(-1, -1)) / 4
    determinant = dxx * dyy - dxy * dxy
    solvable = determinant != 0
    step = np.stack([dyy * dx - dxy * dy, dxx * dy - dxy * dx], axis=1)
    return np.where(solvable[:, None], step / np.where(solvable, determinant, 1)[:, None], 0)
