"""YOLO and ViTPose whole-body on onnxruntime: the estimator that made the model's training clips."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from wan_orchestration.errors import BadInput
from wan_orchestration.formats import describe
from wan_orchestration.preprocess.estimators import dark
from wan_orchestration.preprocess.estimators.base import Detection, Frame
from wan_orchestration.preprocess.keypoints import Pose
from wan_orchestration.preprocess.networks import Device, Networks

ChannelOrder = Literal["published", "rgb"]

DETECTOR = Path("process_checkpoint/det/yolov10m.onnx")
POSE = Path("process_checkpoint/pose2d/vitpose_h_wholebody.onnx")
"""Paths in a snapshot. The pose network is either this file or a folder of this name with end2end.onnx."""

_CUDA = "CUDAExecutionProvider"
_MIN_SCORE = 0.05
_MAX_OVERLAP = 0.5
_PERSON = 0
_CROP = (192, 256)
_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
_STD = np.array([0.229, 0.224, 0.225], np.float32)


def available(snapshot: Path | None) -> bool:
    """Whether the snapshot has both networks."""
    return snapshot is not None and all(_file(snapshot / path) is not None for path in (DETECTOR, POSE))


def vitpose_files(snapshot: Path) -> list[Path]:
    """The files of both networks, with everything beside them: large networks keep weights in further files."""
    files = []
    for path in (DETECTOR, POSE):
        file = _file(snapshot / path)
        files += [snapshot / path] if file is None else sorted(filter(Path.is_file, file.parent.iterdir()))
    return files


def open_vitpose(snapshot: Path, channel_order: ChannelOrder, device: str, networks: Networks) -> "VitPose":
    """The estimator on a device: auto, cpu or cuda. BadInput: the device or a file is missing, or a file is damaged."""
    place: Device = "cuda" if device != "cpu" and _has_cuda() else "cpu"
    if device in ("auto", place):
        opened = networks.open("vitpose", place, vitpose_files(snapshot), lambda: VitPoseNetworks(snapshot, place))
        if device != "cuda" or opened.on_cuda:
            return VitPose(opened, channel_order)
    raise BadInput(
        "device: cuda was asked for, but onnxruntime runs on the CPU here: install onnxruntime-gpu in place of "
        "onnxruntime, for the CUDA version of this machine, or use device: auto"
    )


def _has_cuda() -> bool:
    import onnxruntime  # noqa: PLC0415 (as below)

    return _CUDA in onnxruntime.get_available_providers()


class VitPoseNetworks:
    """The detector and the pose network, on one device, and threads that prepare their input.

    They hold no state of a video.
    """

    def __init__(self, snapshot: Path, device: Device) -> None:
        self.pool = ThreadPoolExecutor(min(len(os.sched_getaffinity(0)), 8), thread_name_prefix="vitpose")
        self.detector = _OnnxNetwork(snapshot / DETECTOR, device)
        self.pose = _OnnxNetwork(snapshot / POSE, device)

    @property
    def on_cuda(self) -> bool:
        return self.detector.on_cuda and self.pose.on_cuda


class VitPose:
    """The published pair of networks. Frames are batched if the networks' batch axis allows it.

    `channel_order` is that of the pose network's crops. `published`: BGR with RGB statistics, as the tools that made
    the 14B model's clips fed it. `rgb`: the order that the network was trained on.
    """

    name = "vitpose"
    batch = 8
    smooth = 0.0

    def __init__(self, networks: VitPoseNetworks, channel_order: ChannelOrder) -> None:
        self._detector, self._pose, self._pool = networks.detector, networks.pose, networks.pool
        self._channel_order: ChannelOrder = channel_order

    def detect(self, frames: Sequence[Frame]) -> list[list[Detection]]:
        rows = self._detector(np.stack(list(self._pool.map(lambda frame: detector_input(frame.pixels), frames))))
        return [people(row, frame.size) for row, frame in zip(rows, frames)]

    def estimate(self, frames: Sequence[Frame], people: Sequence[Detection]) -> list[Pose]:
        windows = [pose_window(person.box, frame.size) for frame, person in zip(frames, people)]

        def crop(frame: Frame, window: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
            return pose_input(frame.pixels, *window, self._channel_order)

        crops = np.stack(list(self._pool.map(crop, frames, windows)))
        centres, sizes = (np.stack(column) for column in zip(*windows))
        points = dark.decode(self._pose(crops), centres, sizes)
        return [Pose.from_wholebody(found, frame.size) for found, frame in zip(points, frames)]


class _OnnxNetwork:
    """One ONNX file. It takes batches of any size, even if the file's batch axis is fixed."""

    def __init__(self, path: Path, device: Device) -> None:
        file = _file(path)
        if file is None:
            raise BadInput(
                f"{path} is missing (or a folder of that name with end2end.onnx): download it with the snapshot "
                "from ModelScope, Wan-AI/Wan2.2-Animate-14B, process_checkpoint/, or choose estimator: light"
            )
        import onnxruntime  # noqa: PLC0415 (not needed for quality checks if the networks are missing)

        providers = ["CPUExecutionProvider"]
        if device == "cuda":
            # CUDA's libraries come with torch. Without this call, onnxruntime does not find them.
            onnxruntime.preload_dlls()
            providers.insert(0, _CUDA)
        try:
            self._session = onnxruntime.InferenceSession(file, providers=providers)
        except Exception as error:  # onnxruntime raises its own types, and bare RuntimeError for some files
            if _ran_out_of_memory(error):
                raise MemoryError(f"{file}: {error}") from error
            raise BadInput(f"{file} is {describe(file)}, which cannot be loaded as an ONNX network: {error}") from error
        # Without CUDA's libraries, onnxruntime falls back to the CPU.
        self.on_cuda = _CUDA in self._session.get_providers()
        entry = self._session.get_inputs()[0]
        self._input = entry.name
        self._static_batch = entry.shape[0] if isinstance(entry.shape[0], int) else None

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        """The first output for a batch. MemoryError: the device or the host has no memory left."""
        try:
            return self._run(batch)
        except Exception as error:
            if _ran_out_of_memory(error):
                raise MemoryError(str(error)) from error
            raise

    def _run(self, batch: np.ndarray) -> np.ndarray:
        if self._static_batch is None:
            return np.asarray(self._session.run(None, {self._input: batch})[0])
        size = self._static_batch
        done = []
        for start in range(0, len(batch), size):
            part = batch[start : start + size]
            padded = np.concatenate([part, np.repeat(part[-1:], size - len(part), axis=0)])
            done.append(np.asarray(self._session.run(None, {self._input: padded})[0])[: len(part)])
        return np.concatenate(done)


def _ran_out_of_memory(error: Exception) -> bool:
    """Whether an error of onnxruntime, which has no type for this, means that memory ran out."""
    words = "out of memory", "allocate memory", "alloc_failed", "bad_alloc"
    return any(word in str(error).lower() for word in words)


def _file(path: Path) -> Path | None:
    return next((file for file in (path, path / "end2end.onnx") if file.is_file()), None)


def detector_input(picture: np.ndarray) -> np.ndarray:
    """(3, 640, 640) float32 RGB in 0..1 from (H, W, 3) uint8 RGB, stretched to a square."""
    # Transposed first, because that is faster on bytes than on floats.
    return np.ascontiguousarray(cv2.resize(picture, (640, 640)).transpose(2, 0, 1)).astype(np.float32) / 255


def people(rows: np.ndarray, size: tuple[int, int]) -> list[Detection]:
    """The people in a detector's output: (300, 6) x0, y0, x1, y1, score, class, or the raw (84, 8400).

    Boxes are in px of a picture of `size` (width, height), truncated to whole px as published. Non-maximum suppression
    compares only people, so a chair in front of a person cannot suppress the person.
    """
    if rows.shape[0] == 84:
        centre, extent, scores = rows[:2].T, rows[2:4].T, rows[4:].T
        rows = np.column_stack([centre - extent / 2, centre + extent / 2, scores.max(axis=1), scores.argmax(axis=1)])
    rows = rows[(rows[:, 4] > _MIN_SCORE) & (rows[:, 5] == _PERSON)]
    if not len(rows):
        return []
    corners = rows[:, :4] * np.tile(np.array(size) / 640, 2)
    corner, extent = corners[:, :2].astype(np.int32), (corners[:, 2:] - corners[:, :2]).astype(np.int32)
    boxes = np.column_stack([corner, extent])
    kept = cv2.dnn.NMSBoxes(boxes.tolist(), rows[:, 4].tolist(), _MIN_SCORE, _MAX_OVERLAP)
    return [
        Detection((float(x), float(y), float(x + width), float(y + height)), float(rows[i, 4]))
        for i in np.asarray(kept).ravel()
        for x, y, width, height in [boxes[i]]
    ]


def pose_window(box: tuple[float, float, float, float], size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Centre and (width, height) px of the pose network's 3:4 window, a quarter larger than the box.

    A box with a side under 10 px is replaced by the whole picture.
    """
    x0, y0, x1, y1 = box
    if x1 - x0 < 10 or y1 - y0 < 10:
        x0, y0, x1, y1 = 0, 0, *size
    height = max((x1 - x0) * 4 / 3, y1 - y0) * 1.25
    return np.array([(x0 + x1) / 2, (y0 + y1) / 2]), np.array([height * 0.75, height])


def pose_input(picture: np.ndarray, centre: np.ndarray, size: np.ndarray, channel_order: ChannelOrder) -> np.ndarray:
    """(3, 256, 192) normalised float32: the window of the picture, black outside the picture."""
    x0, y0 = np.round(centre - size / 2).astype(int)
    x1, y1 = np.round(centre + size / 2).astype(int)
    height, width = picture.shape[:2]
    inside = picture[max(y0, 0) : max(min(y1, height), 0), max(x0, 0) : max(min(x1, width), 0)]
    window = np.zeros((y1 - y0, x1 - x0, 3), np.uint8)
    top, left = max(-y0, 0), max(-x0, 0)
    window[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
    crop = cv2.resize(window.astype(np.float32), _CROP, interpolation=cv2.INTER_LINEAR)
    if channel_order == "published":
        crop = crop[..., ::-1]
    return ((crop / 255 - _MEAN) / _STD).transpose(2, 0, 1).astype(np.float32)
