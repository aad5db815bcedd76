"""Runs MediaPipe's networks on LiteRT, cuts square regions out of pictures, and decodes anchor boxes."""

import math
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from ai_edge_litert.interpreter import Interpreter


class TfliteNetwork:
    """One .tflite file with a single square input. Two threads must not use it at the same time."""

    def __init__(self, path: Path) -> None:
        self._interpreter = Interpreter(model_path=str(path), num_threads=1)
        self._interpreter.allocate_tensors()
        entry = self._interpreter.get_input_details()[0]
        self._input = entry["index"]
        self._outputs = [output["index"] for output in self._interpreter.get_output_details()]
        self.side = int(entry["shape"][1])

    def __call__(self, picture: np.ndarray) -> list[np.ndarray]:
        """The outputs for a (side, side, 3) picture, whose values are in the network's range."""
        self._interpreter.set_tensor(self._input, picture[None].astype(np.float32))
        self._interpreter.invoke()
        return [self._interpreter.get_tensor(index) for index in self._outputs]


@dataclass(frozen=True)
class Region:
    """A rotated square of a picture: centre and side in px, rotation in radians (clockwise)."""

    x: float
    y: float
    side: float
    rotation: float = 0.0

    @classmethod
    def spanned(cls, centre: np.ndarray, edge: np.ndarray, scale: float, upright: float) -> "Region":
        """The square around a circle, given by its centre and a point on it.

        Seen in the square, that point lies at `upright` degrees (counterclockwise from the right).
        """
        dx, dy = edge - centre
        angle = math.radians(upright) - math.atan2(-dy, dx)
        return cls(float(centre[0]), float(centre[1]), 2 * math.hypot(dx, dy) * scale, _wrapped(angle))

    def shifted_down(self, part: float) -> "Region":
        """The region moved along its own downward axis by the fraction `part` of its side."""
        step = self.side * part
        return Region(
            self.x - step * math.sin(self.rotation), self.y + step * math.cos(self.rotation), self.side, self.rotation
        )

    def to_picture(self, pixels: int) -> np.ndarray:
        """(2, 3) affine map from px of this region, cut out with sides of `pixels` px, to px of the picture."""
        scale = self.side / pixels
        cos, sin = scale * math.cos(self.rotation), scale * math.sin(self.rotation)
        half = pixels / 2
        return np.array([[cos, -sin, self.x - (cos - sin) * half], [sin, cos, self.y - (sin + cos) * half]])

    def cut(self, picture: np.ndarray, pixels: int, border: int = cv2.BORDER_REPLICATE) -> np.ndarray:
        """Cuts the region out of the (H, W, 3) uint8 picture, as (pixels, pixels, 3)."""
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        return cv2.warpAffine(picture, self.to_picture(pixels), (pixels, pixels), flags=flags, borderMode=border)

    def place(self, points: np.ndarray, pixels: int) -> np.ndarray:
        """Maps (n, 2) points from px of the region, cut out with sides of `pixels` px, to px of the picture."""
        affine = self.to_picture(pixels)
        return points @ affine[:, :2].T + affine[:, 2]


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(np.asarray(logits, np.float64), -100, 100)))


def anchor_centres(side: int, strides: tuple[int, ...]) -> np.ndarray:
    """(anchors, 2) centres in 0..1: two anchors per cell for each stride. Equal strides share a grid."""
    grids = []
    for stride in sorted(set(strides)):
        cells = math.ceil(side / stride)
        ys, xs = np.mgrid[:cells, :cells]
        centres = np.stack([(xs + 0.5) / cells, (ys + 0.5) / cells], axis=-1).reshape(-1, 2)
        grids.append(np.repeat(centres, 2 * strides.count(stride), axis=0))
    return np.concatenate(grids)


def decode_boxes(raw: np.ndarray, logits: np.ndarray, anchors: np.ndarray, side: int) -> list[tuple[np.ndarray, float]]:
    """Detections with a score of at least 0.5: corners and n keypoints (2 + n, 2) in 0..1, and the score.

    `raw` is (anchors, 4 + 2n) px: centre and extent, then keypoints, relative to the anchor. Detections that overlap
    (IoU > 0.3) are merged into their mean, weighted by score: MediaPipe's weighted non-maximum suppression.
    """
    scores = sigmoid(logits.reshape(-1))
    kept = scores >= 0.5
    values, centres, scores = raw.reshape(len(anchors), -1)[kept] / side, anchors[kept], scores[kept]
    middle, half = values[:, :2] + centres, values[:, 2:4] / 2
    keypoints = values[:, 4:].reshape(len(values), values.shape[1] // 2 - 2, 2) + centres[:, None]
    points = np.concatenate([(middle - half)[:, None], (middle + half)[:, None], keypoints], axis=1)
    found = []
    left = np.argsort(-scores)
    while len(left):
        near = _overlaps(points[left[0], :2], points[left, :2]) > 0.3
        near[0] = True
        group = left[near]
        merged = np.average(points[group], axis=0, weights=scores[group])
        found.append((merged, float(scores[left[0]])))
        left = left[~near]
    return found


def _overlaps(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    shared = np.clip(np.minimum(box[1], boxes[:, 1]) - np.maximum(box[0], boxes[:, 0]), 0, None).prod(axis=1)
    areas = (boxes[:, 1] - boxes[:, 0]).prod(axis=1)
    return shared / np.maximum((box[1] - box[0]).prod() + areas - shared, 1e-9)


def _wrapped(angle: float) -> float:
    return angle - 2 * math.pi * math.floor((angle + math.pi) / (2 * math.pi))
