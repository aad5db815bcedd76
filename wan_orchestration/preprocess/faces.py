"""Where the face is in every frame, also in those in which none was found."""

import numpy as np

from wan_orchestration.preprocess.geometry import Box, face_box
from wan_orchestration.preprocess.motion import Motion, runs

_DOUBTFUL = 0.2
"""Mean confidence below which points are not a face but a guess."""


def face_boxes(motion: Motion) -> tuple[list[Box] | None, np.ndarray]:
    """A box for each frame, never empty, and (T,) bool: the frames in which no face was found.

    Their boxes lie on a straight line between the neighbours', or are the first or last box held. None where no
    frame shows a face.
    """
    boxes = np.full((len(motion), 4), -1)
    for t in range(len(motion)):
        face = motion.face[t]
        if np.nan_to_num(face[:, 2]).mean() >= _DOUBTFUL:
            boxes[t] = face_box(face.astype(np.float64), motion.size) or -1
    missing = boxes[:, 2] < 0
    if missing.all():
        return None, missing
    for start, end in runs(missing):
        before, after = boxes[max(start - 1, 0)], boxes[min(end, len(boxes) - 1)]
        if start == 0:
            before = after
        if end == len(boxes):
            after = before
        weight = (np.arange(1, end - start + 1) / (end - start + 1))[:, None]
        boxes[start:end] = np.round(before * (1 - weight) + after * weight)
    return [(int(x0), int(y0), int(x1), int(y1)) for x0, y0, x1, y1 in boxes], missing
