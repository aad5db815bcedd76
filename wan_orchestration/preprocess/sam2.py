"""Finds a person's outline with SAM 2, frame by frame."""

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import Sam2VideoInferenceSession, Sam2VideoModel

from wan_orchestration.errors import BadInput
from wan_orchestration.preprocess.keypoints import Pose, confident
from wan_orchestration.preprocess.mask_hints import Prompts
from wan_orchestration.preprocess.networks import Device

_PROMPT_JOINTS = [0, 1, 2, 5, 8, 11, 10, 13]
"""Joints used as prompts: nose, neck, shoulders, hips and ankles, as published."""
_FEWEST_POINTS = 3
_MOST_KEY_FRAMES = 7
_LONGEST_INTERVAL = 100
_MEMORY = 16
"""Number of previous frames that the model uses: object pointers of 16, memory of the last 6."""
_PERSON_ID = 1
_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
_STD = np.array([0.229, 0.224, 0.225], np.float32)


def prompt_interval(frames: int) -> int:
    """Frames between two prompts, so that a video gets at least four, and at least one per hundred frames."""
    return min(max(frames // 4, 1), _LONGEST_INTERVAL)


def pick_device(device: str) -> Device:
    """The device that auto, cpu or cuda means. BadInput: there is no CUDA device."""
    if device == "cuda" and not torch.cuda.is_available():
        raise BadInput("device: cuda was asked for, but torch finds no CUDA device here; use device: auto")
    return "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"


class Sam2:
    """Follows one person through a video. Call it for frames in order. Its memory does not grow.

    The prompts are the confident joints inside the frame, and mask hints. The model is prompted in the first frame that
    has enough joints, then every `interval` frames, in each frame whose outline is empty although joints are visible,
    and where hints were drawn.
    """

    def __init__(self, model: Sam2VideoModel, device: Device, interval: int) -> None:
        """`model` is on the device."""
        self._model = model
        self._device = device
        self._interval = interval
        self._side = int(model.config.image_size)  # pyright: ignore[reportArgumentType]
        self._session: Sam2VideoInferenceSession | None = None
        self._prompted_at = 0

    def __call__(self, index: int, picture: np.ndarray, pose: Pose, hints: Prompts | None = None) -> np.ndarray:
        """(H, W) uint8 of 0 and 1 for (H, W, 3) uint8 RGB, and the person's pose and mask hints in it."""
        height, width = picture.shape[:2]
        joints = prompt_points(pose)
        enough = len(joints) >= _FEWEST_POINTS
        points, labels = with_hints(joints, hints)
        if self._session is None:
            if not enough:
                return np.zeros((height, width), np.uint8)
            self._session = self._open_session(height, width)
            self._prompted_at = index - self._interval
        session = self._session
        session.add_new_frame(self._pixels(picture), frame_idx=index)
        if enough and (index - self._prompted_at >= self._interval or (hints is not None and hints.drawn)):
            self._prompt(index, points, labels, width, height)
        mask = self._segment(index, width, height)
        if enough and self._prompted_at != index and not mask.any():
            outputs = session.output_dict_per_obj[0]["non_cond_frame_outputs"]
            outputs.pop(index, None)
            session.frames_tracked_per_obj[0].pop(index, None)
            self._prompt(index, points, labels, width, height)
            mask = self._segment(index, width, height)
        self._forget(index)
        return mask

    def _open_session(self, height: int, width: int) -> Sam2VideoInferenceSession:
        session = Sam2VideoInferenceSession(
            video_height=height,
            video_width=width,
            inference_device=self._device,
            inference_state_device=self._device,
            video_storage_device=self._device,
            dtype=torch.float32,
        )
        session.obj_id_to_idx(_PERSON_ID)
        return session

    def _pixels(self, picture: np.ndarray) -> Tensor:
        """(3, side, side) normalised, resized by Pillow's bicubic filter as published."""
        small = np.asarray(Image.fromarray(picture).resize((self._side, self._side)), np.float32)
        return torch.from_numpy(((small / 255 - _MEAN) / _STD).transpose(2, 0, 1).copy())

    def _prompt(self, index: int, points: np.ndarray, labels: np.ndarray, width: int, height: int) -> None:
        assert self._session is not None
        coordinates = torch.from_numpy((points * (self._side / width, self._side / height)).astype(np.float32))
        inputs = {
            "point_coords": coordinates[None, None],
            "point_labels": torch.from_numpy(labels)[None, None],
        }
        self._session.add_point_inputs(0, index, inputs)
        self._session.obj_with_new_inputs = [_PERSON_ID]
        self._prompted_at = index

    def _segment(self, index: int, width: int, height: int) -> np.ndarray:
        # The settings of a generation in the same process, such as tf32, must not change the outline.
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=False, allow_tf32=True):
            logits = self._model(inference_session=self._session, frame_idx=index).pred_masks
        low = logits[0, 0].float().cpu().numpy()
        # Half-pixel centres and no corner alignment, as in torch's bilinear interpolation.
        return (cv2.resize(low, (width, height), interpolation=cv2.INTER_LINEAR) > 0).astype(np.uint8)

    def _forget(self, index: int) -> None:
        """Deletes the session's data that the model will not use again."""
        session = self._session
        assert session is not None and session.processed_frames is not None
        session.processed_frames.pop(index, None)
        session.cache.clear_all()
        outputs = session.output_dict_per_obj[0]
        for kind in outputs.values():
            if index in kind:
                kind[index].pop("high_res_masks", None)
        _drop_below(outputs["non_cond_frame_outputs"], index - _MEMORY)
        _drop_below(session.frames_tracked_per_obj[0], index - _MEMORY)
        key_frames = sorted(outputs["cond_frame_outputs"])
        if len(key_frames) > _MOST_KEY_FRAMES:
            _drop_below(outputs["cond_frame_outputs"], key_frames[-_MOST_KEY_FRAMES])
        session.point_inputs_per_obj[0].clear()


def prompt_points(pose: Pose) -> np.ndarray:
    """(n, 2) whole px of the prompt joints that are confident and inside the picture."""
    joints = pose.body[_PROMPT_JOINTS]
    points = np.trunc(joints[confident(joints), :2])
    return points[((points >= 0) & (points < pose.size)).all(axis=1)]


def with_hints(joints: np.ndarray, hints: Prompts | None) -> tuple[np.ndarray, np.ndarray]:
    """(n, 2) px and (n,) int32 labels: 2 and 3 for the corners of a box, 1 for points on the person, 0 for others.

    SAM 2 accepts one box, before the points: the smallest that holds all boxes.
    """
    inside = joints if hints is None else np.concatenate([joints, hints.inside])
    points, labels = [inside], [1] * len(inside)
    if hints is not None:
        points.append(hints.outside)
        labels += [0] * len(hints.outside)
        if hints.boxes:
            boxes = np.array(hints.boxes)
            points.insert(0, np.array([boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)]))
            labels = [2, 3, *labels]
    return np.concatenate(points), np.array(labels, np.int32)


def _drop_below(entries: dict, first: int) -> None:
    for index in [index for index in entries if index < first]:
        del entries[index]
