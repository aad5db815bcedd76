"""Writes what a person looks at before generation: the overlay, the people, a timeline of pictures, and `look.json`."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from wan_orchestration.files import replacing
from wan_orchestration.jobs.clips import LOOK, PEOPLE
from wan_orchestration.preprocess.clip_writer import ClipWriter
from wan_orchestration.preprocess.drawing import draw_body, draw_hand
from wan_orchestration.preprocess.estimators.base import Frame
from wan_orchestration.preprocess.follow import FollowedPerson
from wan_orchestration.preprocess.frames import DrivingVideo
from wan_orchestration.preprocess.geometry import Letterbox
from wan_orchestration.preprocess.people import NumberedPeople
from wan_orchestration.protocol.messages import Look, Notice
from wan_orchestration.settings.preprocess import PreprocessSettings

OVERLAY_SIDE = 480
"""px: longest side of the overlay."""
TIMELINE_PICTURES = 16
TIMELINE_WIDTH = 96
"""px: width of each picture of the timeline."""
_BOX = (0, 220, 0)
_MASK = np.array((255, 0, 200), np.uint8)


class Overlay:
    """The driving video with the person's box and skeleton and, in replace mode, the tinted mask. Small."""

    def __init__(self, writer: ClipWriter, person: FollowedPerson, canvas: tuple[int, int]) -> None:
        """`canvas` is the masks' (width, height)."""
        self._writer, self._motion, self._boxes = writer, person.motion, person.boxes
        width, height = self._source = person.motion.size
        shrink = min(OVERLAY_SIDE / max(width, height), 1.0)
        # H.264 in yuv420p needs even sides.
        self._size = max(int(width * shrink / 2), 1) * 2, max(int(height * shrink / 2), 1) * 2
        self._scale = self._size[0] / width, self._size[1] / height
        self._fit = Letterbox.into(self._source, canvas)

    def write(self, index: int, frame: Frame, mask: np.ndarray | None) -> None:
        """`mask` is (H, W) uint8 of 0 and 1 on the canvas."""
        picture = cv2.resize(frame.pixels, self._size, interpolation=cv2.INTER_AREA)
        if mask is not None:
            fit = self._fit
            inner = mask[fit.top : fit.top + fit.inner[1], fit.left : fit.left + fit.inner[0]]
            inside = cv2.resize(inner, self._size, interpolation=cv2.INTER_NEAREST) > 0
            picture[inside] = picture[inside] // 3 * 2 + _MASK // 3
        box = self._boxes[index]
        if np.isfinite(box).all():
            x0, y0, x1, y1 = (round(float(value) * self._scale[axis % 2]) for axis, value in enumerate(box))
            cv2.rectangle(picture, (x0, y0), (x1, y1), _BOX, 1)
        pose = self._motion[index].moved(self._scale, (0.0, 0.0), self._size)
        draw_body(picture, pose.body, 2 if min(self._size) >= 200 else 1)
        draw_hand(picture, pose.left_hand, 1)
        draw_hand(picture, pose.right_hand, 1)
        self._writer.write(picture)


class TimelinePictures:
    """Small pictures that are spread over the whole driving video, also outside of `start` and `end`.

    Frames of the clips and keyframes serve for moments nearby, so that little is decoded for them.
    """

    def __init__(self, video: DrivingVideo) -> None:
        self._video = video
        width, height = video.size
        self._size = TIMELINE_WIDTH, max(round(height * TIMELINE_WIDTH / width), 1)
        tile = video.info.duration / TIMELINE_PICTURES
        moments = [(place + 0.5) * tile for place in range(TIMELINE_PICTURES)]
        self._sources = [_near(video, moment, tile / 2) for moment in moments]
        self._pictures: dict[int, np.ndarray] = {}

    def add(self, frame: Frame) -> None:
        """Adds a frame of the clips, if the timeline shows it."""
        if frame.source in self._sources and frame.source not in self._pictures:
            self._pictures[frame.source] = cv2.resize(frame.pixels, self._size, interpolation=cv2.INTER_AREA)

    def write(self, path: Path) -> None:
        """Writes a JPEG of the pictures in a row. A picture whose frame is damaged is black."""
        if missing := {*self._sources} - self._pictures.keys():
            for frame in self._video.read(missing):
                self.add(frame)
        black = np.zeros((self._size[1], self._size[0], 3), np.uint8)
        _write_jpeg(path, np.hstack([self._pictures.get(source, black) for source in self._sources]))


def _near(video: DrivingVideo, moment: float, reach: float) -> int:
    """A frame of the clips or a keyframe at most `reach` seconds from the moment, else the frame nearest to it."""
    times = np.asarray(video.times)
    for indices in (video.indices, video.keyframes):
        offsets = np.abs(times[indices] - moment)
        if len(offsets) and offsets.min() <= reach:
            return indices[int(offsets.argmin())]
    return int(np.abs(times - moment).argmin())


def write_look(
    folder: Path, video: DrivingVideo, people: NumberedPeople, settings: PreprocessSettings, warnings: Sequence[Notice]
) -> None:
    """Writes `people.jpg` and `look.json`."""
    _write_jpeg(folder / PEOPLE, people.picture)
    look = Look(
        frames=len(video),
        fps=float(video.fps),
        start=settings.start,
        end=round(settings.start + float(len(video) / video.fps), 4),
        source_seconds=video.info.duration,
        source_width=video.info.width,
        source_height=video.info.height,
        people=people.people,
        people_frame=people.index,
        people_seconds=round(people.seconds, 4),
        warnings=list(warnings),
    )
    (folder / LOOK).write_text(look.model_dump_json(indent=1))


def _write_jpeg(path: Path, picture: np.ndarray) -> None:
    with replacing(path) as part:
        Image.fromarray(picture).save(part, "JPEG", quality=85)
