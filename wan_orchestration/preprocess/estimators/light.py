"""The light estimator: MediaPipe's holistic pipeline on LiteRT. It needs neither a GPU nor the snapshot."""

import math
import os
import queue
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np

from wan_orchestration.preprocess.estimators.base import Detection, Frame, iou
from wan_orchestration.preprocess.estimators.litert import Region, TfliteNetwork, anchor_centres, decode_boxes, sigmoid
from wan_orchestration.preprocess.keypoints import LEFT_HIP, NECK, RIGHT_HIP, Pose, absent, bounds, confident, extent

T = TypeVar("T")

_PRESENT = 0.5
_SAME_PERSON = 0.4
"""Smallest intersection over union at which two detections are one person."""
_CERTAIN = 0.65
"""Smallest score of further people, because the detector also takes posters and patterns for people."""
_MOST_PEOPLE = 8
"""The search of a frame ends when so many people are found."""
_SEARCH_SECONDS = 0.5
"""Time between two full searches. They find people that a detection on the whole frame misses."""
_POSE_ANCHORS = anchor_centres(224, (8, 16, 32, 32, 32))
_FACE_ANCHORS = anchor_centres(128, (8, 16, 16, 16))

# MediaPipe's 33 body points -> the 20 joints. The neck is the middle of the shoulders.
_JOINTS_A = [0, 11, 12, 14, 16, 11, 13, 15, 24, 26, 28, 23, 25, 27, 5, 2, 8, 7, 31, 32]
_JOINTS_B = [0, 12, 12, 14, 16, 11, 13, 15, 24, 26, 28, 23, 25, 27, 5, 2, 8, 7, 31, 32]
_HIPS = [23, 24]
_LEFT_HAND, _RIGHT_HAND = (15, 17, 19), (16, 18, 20)
"""Wrist, little finger and index finger among the 33 points."""
# MediaPipe's 468 face points -> the 68 of iBUG: jaw, brows, nose, eyes, mouth.
_FACE = [
    127, 234, 93, 132, 58, 136, 150, 176, 152, 400, 379, 365, 288, 361, 323, 454, 356,
    70, 63, 105, 66, 107, 336, 296, 334, 293, 300, 168, 197, 5, 4, 98, 97, 2, 326, 327,
    33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380,
    61, 40, 37, 0, 267, 270, 291, 321, 314, 17, 84, 91, 78, 82, 13, 312, 308, 317, 14, 87,
]  # fmt: skip


class LightNetworks:
    """The six networks, once for each thread, and the threads. They hold no state of a video."""

    def __init__(self, models: Path, threads: int | None = None) -> None:
        self.threads = threads or min(len(os.sched_getaffinity(0)), 8)
        self._workers: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        for _ in range(self.threads):
            self._workers.put(_Worker(models))
        self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="light")

    def detect(self, frame: Frame, everywhere: bool) -> Future[list[Detection]]:
        return self._pool.submit(self._with_worker, lambda worker: worker.detect(frame.pixels, everywhere))

    def estimate(self, frame: Frame, person: Detection) -> Future[Pose]:
        return self._pool.submit(self._with_worker, lambda worker: worker.estimate(frame, person))

    def _with_worker(self, use: "Callable[[_Worker], T]") -> T:
        worker = self._workers.get()
        try:
            return use(worker)
        finally:
            self._workers.put(worker)


class Light:
    """Detects people in every frame. The frames of a batch are processed in parallel, one thread each.

    On a whole frame the detector finds one or two people. So twice a second, a frame is also searched in parts. If
    this finds several people, every frame is searched in parts until the next such search.
    """

    name = "light"
    smooth = 0.03

    def __init__(self, networks: LightNetworks) -> None:
        self._networks = networks
        self.batch = networks.threads
        self._searched = math.inf
        self._several = False

    def detect(self, frames: Sequence[Frame]) -> list[list[Detection]]:
        searches = [self._is_due(frame) for frame in frames]
        # All frames start at once. Those for which a search before them changes the answer are detected again.
        assumed = self._several
        found = [self._networks.detect(frame, due or assumed) for frame, due in zip(frames, searches)]
        for i, due in enumerate(searches):
            if due:
                self._several = len(found[i].result()) > 1
            elif self._several != assumed:
                found[i] = self._networks.detect(frames[i], self._several)
        return [people.result() for people in found]

    def _is_due(self, frame: Frame) -> bool:
        """Whether to search the whole frame and its parts."""
        # A time that does not increase belongs to another picture.
        due = not self._searched < frame.time < self._searched + _SEARCH_SECONDS
        if due:
            self._searched = frame.time
        return due

    def estimate(self, frames: Sequence[Frame], people: Sequence[Detection]) -> list[Pose]:
        poses = [self._networks.estimate(*pair) for pair in zip(frames, people)]
        return [pose.result() for pose in poses]


class _Worker:
    """One set of the six networks, for one thread at a time."""

    def __init__(self, models: Path) -> None:
        self._find_people = TfliteNetwork(models / "pose_detection.tflite")
        self._body = TfliteNetwork(models / "pose_landmark_full.tflite")
        self._find_face = TfliteNetwork(models / "face_detection_short_range.tflite")
        self._face = TfliteNetwork(models / "face_landmark.tflite")
        self._centre_hand = TfliteNetwork(models / "hand_recrop.tflite")
        self._hand = TfliteNetwork(models / "hand_landmark_full.tflite")

    def detect(self, picture: np.ndarray, everywhere: bool) -> list[Detection]:
        """People in an (H, W, 3) uint8 picture. Searches the whole, and its parts if `everywhere` or nobody is found.

        The detector tends to find only one person, so people who are found are covered before each further search.
        """
        whole, parts = _whole_and_parts(picture.shape[1], picture.shape[0])
        people = self._search(picture, [whole], [])
        while len(people) < _MOST_PEOPLE and (everywhere or not people):
            found = self._search(picture, [whole, *parts], people)
            if not found:
                break
            people, everywhere = people + found, True
        return people

    def _search(self, picture: np.ndarray, parts: list[Region], known: list[Detection]) -> list[Detection]:
        """People in `parts` of the picture, without those already `known`."""
        covered = picture.copy() if known else picture
        for person in known:
            x0, y0, x1, y1 = (round(edge) for edge in person.box)
            covered[y0:y1, x0:x1] = 127
        regions = [found for part in parts for found in self._regions(covered, part)]
        regions = [(region, score) for region, score in regions if not known or score >= _CERTAIN]
        people = []
        for region, score in sorted(regions, key=lambda found: -found[1]):
            person = self._person(picture, region, score)
            if person is not None and all(iou(person.box, other.box) < _SAME_PERSON for other in known + people):
                people.append(person)
        return people

    def _regions(self, picture: np.ndarray, part: Region) -> list[tuple[Region, float]]:
        """The square around each person that the detector finds in a part of the picture, and its score."""
        side = self._find_people.side
        raw, logits = self._find_people(part.cut(picture, side, cv2.BORDER_CONSTANT) / 127.5 - 1)
        found = []
        for points, score in decode_boxes(raw, logits, _POSE_ANCHORS, side):
            # Keypoint 0 is the middle of the hips. Keypoint 1 lies on the circle around the whole body, above the head.
            hips, top = part.place(points[2:4] * side, side)
            region = Region.spanned(hips, top, 1.25, 90)
            if abs(region.rotation) <= math.pi / 2 and region.side >= 16:
                found.append((region, score))
        return found

    def _person(self, picture: np.ndarray, region: Region, score: float) -> Detection | None:
        """The person in the region, with the (33, 3) body points as hint; None if there is no person."""
        points, visible = self._body_points(picture, region)
        if points is None or points[0, 1] > points[_HIPS, 1].mean():
            return None
        rows = np.column_stack([points, visible])
        box = extent(rows, (picture.shape[1], picture.shape[0]))
        return None if box is None else Detection(box, score, hint=rows)

    def estimate(self, frame: Frame, person: Detection) -> Pose:
        assert isinstance(person.hint, np.ndarray)
        rows, points = person.hint, person.hint[:, :2]
        body = (rows[_JOINTS_A] + rows[_JOINTS_B]) / 2
        return Pose(
            frame.size,
            body=body,
            left_hand=self._hand_points(frame.pixels, points[list(_LEFT_HAND)]),
            right_hand=self._hand_points(frame.pixels, points[list(_RIGHT_HAND)]),
            face=self._face_points(frame.pixels, points[:11]),
        )

    def _body_points(self, picture: np.ndarray, region: Region) -> tuple[np.ndarray | None, np.ndarray]:
        """(33, 2) px and (33,) visibility. None in place of px: the region shows no person."""
        side = self._body.side
        outputs = {out.shape: out for out in self._body(region.cut(picture, side) / 255)}
        landmarks = outputs[1, 195].reshape(39, 5)[:33].astype(np.float64)
        visible = sigmoid(landmarks[:, 3])
        if outputs[1, 1].item() < _PRESENT:
            return None, visible
        points = _refined(landmarks[:, :2], sigmoid(outputs[1, 64, 64, 39][0, :, :, :33]), side)
        return region.place(points, side), visible

    def _hand_points(self, picture: np.ndarray, palm_points: np.ndarray) -> np.ndarray:
        """(21, 3), found by the body's (3, 2) wrist, little and index finger; missing points if there is no hand."""
        wrist, little, index = palm_points
        middle = (2 * index + little) / 3
        palm = Region.spanned(wrist, middle, 1, 90)
        if palm.side < 4:
            return absent(21)
        x, y = middle
        around = Region(x, y, palm.side * 2.7 * 0.75, palm.rotation).shifted_down(-0.1)
        side = self._centre_hand.side
        (raw,) = self._centre_hand(around.cut(picture, side) / 255)
        centre, edge = around.place(raw.reshape(2, 2).astype(np.float64), side)
        region = Region.spanned(centre, edge, 1, -90).shifted_down(-0.1)
        if region.side < 8:
            return absent(21)
        side = self._hand.side
        landmarks, presence = self._hand(region.cut(picture, side) / 255)[:2]
        if presence.item() < _PRESENT:
            return absent(21)
        points = region.place(landmarks.reshape(21, 3)[:, :2].astype(np.float64), side)
        return np.column_stack([points, np.full(21, presence.item())])

    def _face_points(self, picture: np.ndarray, head: np.ndarray) -> np.ndarray:
        """(68, 3), found by the body's (11, 2) points of the head; missing points if there is no face."""
        low, high = head.min(axis=0), head.max(axis=0)
        x, y = (low + high) / 2
        around = Region(x, y, float((high - low).max()) * 3)
        if around.side < 16:
            return absent(68)
        side = self._find_face.side
        raw, logits = self._find_face(around.cut(picture, side) / 127.5 - 1)
        faces = decode_boxes(raw, logits, _FACE_ANCHORS, side)
        if not faces:
            return absent(68)
        corners = around.place(max(faces, key=lambda face: face[1])[0] * side, side)
        eyes = Region.spanned(corners[2], corners[3], 1, 0)
        extent = float((corners[1] - corners[0]).max())
        x, y = corners[:2].mean(axis=0)
        region = Region(x, y, extent * 2, eyes.rotation)
        side = self._face.side
        landmarks, presence = sorted(self._face(region.cut(picture, side) / 255), key=lambda out: -out.size)
        certainty = float(sigmoid(presence.ravel()[0]))
        if certainty < _PRESENT:
            return absent(68)
        points = region.place(landmarks.reshape(468, 3)[_FACE, :2].astype(np.float64), side)
        return np.column_stack([points, np.full(68, certainty)])


class LightOutline:
    """A person's mask by the body network, around keypoints of any estimator. It holds no state of a video."""

    def __init__(self, models: Path) -> None:
        self._body = TfliteNetwork(models / "pose_landmark_full.tflite")

    def __call__(self, picture: np.ndarray, pose: Pose) -> np.ndarray:
        """(H, W) uint8 of 0 and 1."""
        height, width = picture.shape[:2]
        region = _region_around(pose.body)
        if region is None:
            return np.zeros((height, width), np.uint8)
        side = self._body.side
        logits = next(out for out in self._body(region.cut(picture, side) / 255) if out.shape[-3:] == (side, side, 1))
        mask = cv2.warpAffine(
            logits.reshape(side, side),
            region.to_picture(side),
            (width, height),
            flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=-1,
        )
        return (mask > 0).astype(np.uint8)


def _whole_and_parts(width: int, height: int) -> tuple[Region, list[Region]]:
    """The square around a picture, and the squares with its shorter side that cover it, if it takes several."""
    short, long = sorted((width, height))
    count = math.ceil(long / short - 0.1)
    centres = np.linspace(short / 2, long - short / 2, count).tolist() if count > 1 else []
    wide = width > height
    parts = [Region(c if wide else width / 2, height / 2 if wide else c, short) for c in centres]
    return Region(width / 2, height / 2, long), parts


def _refined(points: np.ndarray, maps: np.ndarray, side: int) -> np.ndarray:
    """Moves each point to the centre of mass of the 7x7 cells around it in its heatmap, if one is 0.5 or more.

    `maps` is (h, w, n), `side` the network's side in px.
    """
    points = points.copy()
    cells = maps.shape[0]
    scale = side / cells
    for n, (x, y) in enumerate((points / scale).astype(int)):
        if not (0 <= x < cells and 0 <= y < cells):
            continue
        y0, x0 = max(y - 3, 0), max(x - 3, 0)
        near = maps[y0 : y + 4, x0 : x + 4, n]
        if near.max() >= 0.5:
            ys, xs = np.mgrid[y0 : y0 + near.shape[0], x0 : x0 + near.shape[1]]
            points[n] = (xs * near).sum() / near.sum() * scale, (ys * near).sum() / near.sum() * scale
    return points


def _region_around(body: np.ndarray) -> Region | None:
    """The square that MediaPipe would cut out for this (20, 3) body; None: no joint is confident."""
    sure = confident(body)
    box = bounds(body)
    if box is None:
        return None
    x0, y0, x1, y1 = box
    hips = [RIGHT_HIP, LEFT_HIP]
    if not sure[[NECK, *hips]].all():
        return Region((x0 + x1) / 2, (y0 + y1) / 2, max(x1 - x0, y1 - y0, 16) * 1.5)
    centre = body[hips, :2].mean(axis=0)
    # The farthest joint is the nose or a toe. The circle around the whole body is a tenth larger.
    reach = np.linalg.norm(body[sure, :2] - centre, axis=1).max() * 1.1
    direction = body[NECK, :2] - centre
    edge = centre + direction / max(float(np.linalg.norm(direction)), 1e-6) * reach
    return Region.spanned(centre, edge, 1.25, 90)
