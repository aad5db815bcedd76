"""Reads keypoints that another tool wrote: npz, or OpenPose JSON in one file or one per frame."""

import json
import re
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from wan_orchestration.errors import BadInput
from wan_orchestration.jobs.inputs import KEYPOINTS
from wan_orchestration.preprocess.estimators.base import Detection, Frame
from wan_orchestration.preprocess.keypoints import PARTS, Pose, absent, extent

# Each of our joints is the mean of two points of OpenPose's BODY_25, mostly of the same point twice; a toe is the mean
# of big and small toe. The points of OpenPose's COCO_18 are our first 18 joints in the same order.
_BODY_25_A = [0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 22]
_BODY_25_B = [0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 20, 23]
_JSON_PARTS = {
    "pose_keypoints_2d": "body",
    "hand_left_keypoints_2d": "left_hand",
    "hand_right_keypoints_2d": "right_hand",
    "face_keypoints_2d": "face",
}
_FAR = 1e5
"""Larger coordinates, in px, are refused."""

PersonPoints = dict[str, np.ndarray]


def find_keypoints(driving: Path, name: str | None) -> Path | None:
    """The keypoints beside the driving video: `name`, or by default keypoints.npz, keypoints.json or keypoints/.

    None: there are none.
    """
    names = KEYPOINTS if name is None else (name,)
    return next((path for path in (driving.parent / each for each in names) if path.exists()), None)


def keypoint_files_of(reference: Path) -> list[Path]:
    """Paths that a reference picture's keypoint file may have. The JSON has the name that OpenPose gives it."""
    return [reference.with_name(f"{reference.stem}_keypoints{suffix}") for suffix in (".npz", ".json")]


class KeypointFile:
    """An estimator that reads people and keypoints from a file. A picture counts as a video of one frame.

    npz: `body` (T, 20, 3), and optionally `left_hand`, `right_hand` (T, 21, 3) and `face` (T, 68, 3); or
    `keypoints` (T, 133, 3) of COCO-WholeBody. Points are x, y, confidence, with NaN or confidence 0 if missing.
    Optionally `size` (width, height), the size of the picture in which px are measured, and `fps`.

    JSON: OpenPose's `{"people": [...]}` for each frame, in a folder with one numbered file per frame, or in one file
    with a list, at the top or under `frames`; optionally with `canvas_width`, `canvas_height`, and `fps` beside
    `frames`.

    If no coordinate is above 1 (in a sample of 50 frames), they are fractions of the picture's sides. The file must
    have as many frames as the video, or give `fps`. BadInput: it has neither, or cannot be read.
    """

    name = "file"
    batch = 16
    smooth = 0.0

    def __init__(self, path: Path, video_frames: int) -> None:
        self._path = path
        self.fps: float | None = None
        self._size: tuple[float, float] | None = None
        read = {".npz": self._open_npz, ".json": self._open_json}.get(path.suffix.lower())
        if path.is_dir():
            read = self._open_folder
        if read is None:
            raise BadInput(f"{path}: expected keypoints as .npz, .json or a folder of .json files")
        count, self._people = read()
        if not count:
            raise BadInput(f"{path}: has no frames")
        self._count = count
        if self.fps is None and count != video_frames:
            raise BadInput(f"{path}: found keypoints of {count} frames, expected {video_frames}, or fps in the file")
        sample = [
            person[part][:, :2]
            for index in np.linspace(0, count - 1, min(count, 50)).astype(int)
            for person in self._people(index)
            for part in person
        ]
        values = np.concatenate(sample) if sample else np.zeros((0, 2))
        values = values[np.isfinite(values)]
        self._normalised = bool(values.size) and float(values.max()) <= 1.0

    def detect(self, frames: Sequence[Frame]) -> list[list[Detection]]:
        return [self._detect(frame) for frame in frames]

    def _detect(self, frame: Frame) -> list[Detection]:
        found = []
        for person in self._people(self._place(frame)):
            pose = self._pose(person, frame)
            box = extent(np.concatenate([getattr(pose, part) for part in PARTS]), frame.size)
            if box is not None and pose.has("body"):
                found.append(Detection(box, float(pose.body[:, 2].mean()), hint=pose))
        return found

    def estimate(self, frames: Sequence[Frame], people: Sequence[Detection]) -> list[Pose]:
        return [person.hint for person in people if isinstance(person.hint, Pose)]

    def _place(self, frame: Frame) -> int:
        place = frame.source if self.fps is None else round(frame.time * self.fps)
        return min(max(place, 0), self._count - 1)

    def _pose(self, person: PersonPoints, frame: Frame) -> Pose:
        width, height = frame.size
        scale = (1.0, 1.0)
        if self._normalised:
            scale = (width, height)
        elif self._size is not None:
            scale = (width / self._size[0], height / self._size[1])
        empty = Pose.empty(frame.size)
        return replace(empty, **person).moved(scale, (0.0, 0.0), frame.size)

    def _open_npz(self) -> tuple[int, Callable[[int], list[PersonPoints]]]:
        try:
            with np.load(self._path, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
        except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
            raise BadInput(f"{self._path}: cannot be read as an npz file: {error}") from None
        if "fps" in arrays:
            self.fps = self._positive("fps", arrays["fps"])
        if "size" in arrays and np.size(arrays["size"]) == 2:
            width, height = (self._positive("size", side) for side in arrays["size"])
            self._size = width, height
        if "keypoints" in arrays:
            points = self._checked("keypoints", arrays["keypoints"], 133)
            whole = [Pose.from_wholebody(frame, (0, 0)) for frame in points]
            stacks = {part: np.stack([getattr(pose, part) for pose in whole]) for part in PARTS}
        else:
            stacks = {part: self._checked(part, arrays[part], count) for part, count in PARTS.items() if part in arrays}
        if "body" not in stacks:
            raise BadInput(f"{self._path}: found {sorted(arrays)}, expected body (T, 20, 3) or keypoints (T, 133, 3)")
        if len({len(stack) for stack in stacks.values()}) != 1:
            raise BadInput(f"{self._path}: its arrays have different numbers of frames")
        return len(stacks["body"]), lambda index: [{part: stack[index] for part, stack in stacks.items()}]

    def _open_json(self) -> tuple[int, Callable[[int], list[PersonPoints]]]:
        content = self._load(self._path)
        if isinstance(content, dict):
            if "fps" in content:
                self.fps = self._positive("fps", content["fps"])
            content = content.get("frames", [content])
        if not isinstance(content, list):
            raise BadInput(f"{self._path}: expected a list of frames, each with people")
        frames = [self._frame(self._path, f"frame {index}", frame) for index, frame in enumerate(content)]
        return len(frames), frames.__getitem__

    def _open_folder(self) -> tuple[int, Callable[[int], list[PersonPoints]]]:
        files = sorted(
            self._path.glob("*.json"), key=lambda file: [int(digits) for digits in re.findall(r"\d+", file.stem)]
        )
        return len(files), lambda index: self._frame(files[index], "the file", self._load(files[index]))

    def _load(self, path: Path) -> object:
        try:
            return json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise BadInput(f"{path}: cannot be read as JSON: {error}") from None

    def _frame(self, path: Path, what: str, content: object) -> list[PersonPoints]:
        if not isinstance(content, dict) or not isinstance(content.get("people"), list):
            raise BadInput(f"{path}: {what} has no list of people, as OpenPose writes it")
        if "canvas_width" in content and "canvas_height" in content:
            self._size = (
                self._positive("canvas_width", content["canvas_width"]),
                self._positive("canvas_height", content["canvas_height"]),
            )
        people = []
        for entry in content["people"]:
            if not isinstance(entry, dict) or not entry.get("pose_keypoints_2d"):
                continue
            person = {}
            for key, part in _JSON_PARTS.items():
                if entry.get(key):
                    person[part] = self._points(path, what, part, entry[key])
            people.append(person)
        return people

    def _points(self, path: Path, what: str, part: str, numbers: object) -> np.ndarray:
        try:
            points = np.asarray(numbers, np.float64).reshape(-1, 3)
        except (ValueError, TypeError):
            raise BadInput(f"{path}: {what}, {part}: expected numbers x, y, confidence for each point") from None
        if part == "body" and len(points) == 25:
            points = (points[_BODY_25_A] + points[_BODY_25_B]) / 2 * (points[_BODY_25_B, 2:] > 0)
        elif part == "body" and len(points) == 18:
            points = np.concatenate([points, absent(2)])
        elif part == "face" and len(points) == 70:
            points = points[:68]
        return self._checked(part, points[None], PARTS[part], path)[0]

    def _checked(self, name: str, points: np.ndarray, count: int, path: Path | None = None) -> np.ndarray:
        if points.ndim != 3 or points.shape[1:] != (count, 3) or points.dtype.kind not in "fiu":
            raise BadInput(
                f"{path or self._path}: {name} has shape {points.shape} of {points.dtype}, "
                f"expected (frames, {count}, 3) numbers"
            )
        points = points.astype(np.float64)
        missing = ~np.isfinite(points).all(axis=-1) | (points[..., 2] <= 0)
        points[missing] = np.nan, np.nan, 0.0
        if (np.abs(points[~missing, :2]) > _FAR).any():
            raise BadInput(f"{path or self._path}: {name} has coordinates beyond {_FAR:.0f} px")
        return points

    def _positive(self, name: str, value: object) -> float:
        try:
            number = float(np.asarray(value, np.float64))
        except (TypeError, ValueError):
            number = 0.0
        if not (np.isfinite(number) and number > 0):
            raise BadInput(f"{self._path}: {name} is {value!r}, expected a positive number")
        return number
