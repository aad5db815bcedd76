"""The driving clip as measures read it: its frames, the skeleton in them, and the picture that the video shows."""

from types import TracebackType
from typing import Self

import numpy as np

from wan_orchestration.jobs.clips import JOINTS, Clips
from wan_orchestration.preprocess.drawing import draw_body
from wan_orchestration.video.reader import FrameReader
from wan_orchestration.video.stills import read_image


class DrivingReader:
    """Reads the driving clip by frame number. Past its end, the last frame repeats. BadInput: it cannot be decoded."""

    def __init__(self, clips: Clips) -> None:
        self._reader = FrameReader(clips.driving.path)
        self._drawn = clips.skeleton is not None
        joints = clips.folder / JOINTS
        self._joints: np.ndarray | None = np.load(joints)["body"] if not self._drawn and joints.is_file() else None

    def frame(self, index: int) -> np.ndarray:
        """(H, W, 3) uint8 RGB."""
        return self._reader.read([min(index, self._reader.info.frames - 1)])[0]

    def skeleton(self, index: int) -> np.ndarray:
        """The driving pose in a frame of the same size, on black: as the clip shows it, or drawn from the joints."""
        if self._drawn:
            return self.frame(index)
        info = self._reader.info
        black = np.zeros((info.height, info.width, 3), np.uint8)
        if self._joints is not None:
            width = max(int(min(info.height, info.width) / 200) - 1, 1)
            draw_body(black, self._joints[min(index, len(self._joints) - 1)], width)
        return black

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reader.close()


def reference_of(clips: Clips) -> np.ndarray:
    """The reference picture without the bars of its canvas, (H, W, 3) uint8 RGB. BadInput: it cannot be decoded."""
    picture, canvas = read_image(clips.reference), clips.canvas
    if canvas is None:
        return picture
    rows, columns = (
        slice(canvas.top, canvas.top + canvas.picture_height),
        slice(canvas.left, canvas.left + canvas.picture_width),
    )
    return picture[rows, columns]
