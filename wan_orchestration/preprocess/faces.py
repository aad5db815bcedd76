"""Finds the position of the face in every frame, also where no face is visible."""

import numpy as np

from wan_orchestration.preprocess.geometry import PixelBox, face_box
from wan_orchestration.preprocess.motion import Motion, stretches

_LEAST_CONFIDENCE = 0.2
"""Smallest mean confidence of points that count as a face."""


def face_boxes(motion: Motion) -> tuple[list[PixelBox] | None, np.ndarray]:
    """A box for each frame, never empty, and (T,) bool: the frames without a face.

    The box of a frame without a face is interpolated linearly between its neighbours, or repeats the first or last
    box. If no frame has a face, None replaces the boxes.
    """
    boxes = np.full((len(motion), 4), -1)
    for t in range(len(motion)):
        face = motion.face[t]
        if np.nan_to_num(face[:, 2]).mean() >= _LEAST_CONFIDENCE:
            boxes[t] = face_box(face.astype(np.float64), motion.size) or -1
    missing = boxes[:, 2] < 0
    if missing.all():
        return None, missing
    for start, end in stretches(missing):
        before, after = boxes[max(start - 1, 0)], boxes[min(end, len(boxes) - 1)]
        if start == 0:
            before = after
        if end == len(boxes):
            after = before
        weight = (np.arange(1, end - start + 1) / (end - start + 1))[:, None]
        boxes[start:end] = np.round(before * (1 - weight) + after * weight)
    return [(int(x0), int(y0), int(x1), int(y1)) for x0, y0, x1, y1 in boxes], missing
