"""Encodes a clip, or the overlay, in its own thread."""

import queue
import threading
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import numpy as np

from wan_orchestration.video.writer import Pixels, write_lossless, write_small

_DEPTH = 4


class ClipWriter:
    """Writes (H, W, 3) uint8 frames, or (H, W) for gray, to an mp4 in a thread. The file appears when complete.

    It is lossless, except with `pixels` "small"; see `write_small`.
    """

    def __init__(self, path: Path, fps: Fraction, pixels: Pixels | Literal["small"]) -> None:
        self._frames: queue.Queue[np.ndarray | None] = queue.Queue(_DEPTH)
        self._failure: BaseException | None = None
        self._cancelled = False
        self._thread = threading.Thread(target=self._run, args=(path, fps, pixels), name=path.name, daemon=True)
        self._thread.start()

    def write(self, frame: np.ndarray) -> None:
        """Queues a frame, which must not be changed afterwards. Raises an error of the encoder, if there was one."""
        self._put(frame)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cancelled = error is not None
        try:
            self._put(None)
        finally:
            self._thread.join()
        if self._failure is not None and not self._cancelled:
            raise self._failure

    def _put(self, item: np.ndarray | None) -> None:
        while self._thread.is_alive():
            try:
                self._frames.put(item, timeout=0.1)
            except queue.Full:
                continue
            return
        if self._failure is not None and not self._cancelled:
            raise self._failure

    def _run(self, path: Path, fps: Fraction, pixels: Pixels | Literal["small"]) -> None:
        try:
            if pixels == "small":
                write_small(path, self._queued(), fps)
            else:
                write_lossless(path, self._queued(), fps, pixels)
        except BaseException as error:  # raised again by write(), or at the end of the with block
            self._failure = error

    def _queued(self) -> Iterator[np.ndarray]:
        while (frame := self._frames.get()) is not None:
            yield frame
        if self._cancelled:
            raise InterruptedError("the clip was cancelled")
