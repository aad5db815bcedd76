"""A person's outline by SAM2, streamed: transformers' model with the published package's weights."""

import re
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import (
    Sam2HieraDetConfig,
    Sam2VideoConfig,
    Sam2VideoInferenceSession,
    Sam2VideoModel,
    Sam2VisionConfig,
)

from wan_orchestration.errors import BadInput
from wan_orchestration.formats import describe
from wan_orchestration.preprocess.keypoints import Pose, confident

_PROMPTED = [0, 1, 2, 5, 8, 11, 10, 13]
"""Nose, neck, shoulders, hips and ankles, as published."""
_FEWEST_POINTS = 3
_MOST_KEY_FRAMES = 7
_LONGEST_INTERVAL = 100
_MEMORY = 16
"""Frames back that the model looks: 16 object pointers, of which 6 with their memory."""
_PERSON_ID = 1
_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
_STD = np.array([0.229, 0.224, 0.225], np.float32)

# What shapes do not tell, of sam2_hiera_large: channels a head, windows of each stage, and the blocks that attend
# globally, the last of the third stage and every tenth before it.
_HEAD_DIM = 72
_WINDOWS = [8, 4, 16, 8]
_GLOBAL_STEP, _GLOBAL_BLOCKS = 10, 3

_RENAMED = (
    ("sam_prompt_encoder", "prompt_encoder"),
    ("sam_mask_decoder", "mask_decoder"),
    ("image_encoder.trunk", "vision_encoder.backbone"),
    ("image_encoder.neck", "vision_encoder.neck"),
    ("output_upscaling.0", "upscale_conv1"),
    ("output_upscaling.1", "upscale_layer_norm"),
    ("output_upscaling.3", "upscale_conv2"),
    ("mask_downscaling.0", "mask_embed.conv1"),
    ("mask_downscaling.1", "mask_embed.layer_norm1"),
    ("mask_downscaling.3", "mask_embed.conv2"),
    ("mask_downscaling.4", "mask_embed.layer_norm2"),
    ("mask_downscaling.6", "mask_embed.conv3"),
    ("dwconv", "depthwise_conv"),
    ("pwconv", "pointwise_conv"),
    ("memory_encoder.fuser", "memory_encoder.memory_fuser"),
    ("memory_encoder.out_proj", "memory_encoder.projection"),
    ("pe_layer.positional_encoding_gaussian_matrix", "shared_embedding.positional_embedding"),
    ("maskmem_tpos_enc", "memory_temporal_positional_encoding"),
    (".gamma", ".scale"),
    ("pix_feat_proj", "feature_projection"),
    ("patch_embed.proj", "patch_embed.projection"),
    ("no_mem_embed", "no_memory_embedding"),
    ("no_mem_pos_enc", "no_memory_positional_encoding"),
    ("no_obj_ptr", "no_object_pointer"),
    ("obj_ptr_proj", "object_pointer_proj"),
    (".norm", ".layer_norm"),
    ("out_proj", "o_proj"),
)
_THREE_LAYERED = r"(iou_prediction_head|pred_obj_score_head|output_hypernetworks_mlps\.\d+|object_pointer_proj)"
_LAYER_OF_THREE = {"0": "proj_in", "1": "layers.0", "2": "proj_out"}
_LAYER_OF_TWO = {"0": "proj_in", "1": "proj_out"}


def load_sam2(path: Path, side: int = 1024) -> Sam2VideoModel:
    """The model in `sam2_hiera_large.pt`, float32 on the CPU; `side` is that of the square pictures it sees, px.

    BadInput: another file, or one in which a tensor is missing, unknown or of another shape.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        weights = content["model"]
        state = converted(weights)
        model = Sam2VideoModel(_config(state, side))
    except Exception as error:  # torch.load raises whatever the damaged bytes lead to
        raise BadInput(f"{path} is {describe(path)}, not sam2_hiera_large.pt, SAM 2's weights: {error!r}") from error
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if expected != found:
        wrong = sorted(set(expected.items()) ^ set(found.items()))
        raise BadInput(f"{path}: {len(wrong)} tensors do not fit SAM 2, such as {wrong[:3]}")
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()}, strict=True, assign=True)
    return model.eval()


def converted(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The published package's tensors under transformers' names."""
    state = {_new_name(name): tensor for name, tensor in weights.items()}
    points = [state.pop(f"prompt_encoder.point_embeddings.{i}.weight") for i in range(4)]
    state["prompt_encoder.point_embed.weight"] = torch.cat(points)
    shared = "shared_embedding.positional_embedding"
    state["shared_image_embedding.positional_embedding"] = state[f"prompt_encoder.{shared}"]
    return state


def _new_name(name: str) -> str:
    for old, new in _RENAMED:
        name = name.replace(old, new)
    name = re.sub(r"(neck\.convs\.\d+)\.conv\.", r"\1.", name)
    name = re.sub(
        r"((?:blocks|transformer\.layers)\.\d+\.mlp)\.layers\.(\d)",
        lambda match: f"{match[1]}.{_LAYER_OF_TWO[match[2]]}",
        name,
    )
    name = re.sub(_THREE_LAYERED + r"\.layers\.(\d)", lambda match: f"{match[1]}.{_LAYER_OF_THREE[match[2]]}", name)
    return re.sub(r"mask_downsampler\.encoder\.(\d+)", lambda match: _downsampler(int(match[1])), name)


def _downsampler(place: int) -> str:
    # Four times convolution, normalisation and activation (which has no weights), then a last convolution.
    if place == 12:
        return "mask_downsampler.final_conv"
    return f"mask_downsampler.layers.{place // 3}.{('conv', 'layer_norm')[place % 3]}"


def _config(state: Mapping[str, Tensor], side: int) -> Sam2VideoConfig:
    backbone = "vision_encoder.backbone"
    blocks = sum(name.startswith(f"{backbone}.blocks.") and name.endswith("attn.qkv.weight") for name in state)
    # A block that changes the width begins a stage.
    widths = [state[f"{backbone}.blocks.{i}.attn.proj.weight"].shape[0] for i in range(blocks)]
    starts = [i for i in range(blocks) if i == 0 or widths[i] != widths[i - 1]]
    counts = [end - start for start, end in zip(starts, [*starts[1:], blocks])]
    dims = [widths[start] for start in starts]
    last = starts[3] - 1
    around = [last - _GLOBAL_STEP * i for i in range(_GLOBAL_BLOCKS)]
    heads = [max(dim // _HEAD_DIM, 1) for dim in dims]
    vision = Sam2VisionConfig(
        backbone_config=Sam2HieraDetConfig(
            hidden_size=dims[0],
            num_attention_heads=heads[0],
            image_size=[side, side],
            embed_dim_per_stage=dims,
            num_attention_heads_per_stage=heads,
            blocks_per_stage=counts,
            window_size_per_stage=_WINDOWS,
            global_attention_blocks=sorted(block for block in around if block >= starts[2]),
            window_positional_embedding_background_size=list(state[f"{backbone}.pos_embed"].shape[-2:]),
        ),
        backbone_channel_list=dims[::-1],
        backbone_feature_sizes=[[side // stride, side // stride] for stride in (4, 8, 16)],
    )
    return Sam2VideoConfig(
        vision_config=vision,
        prompt_encoder_config={"image_size": side},
        image_size=side,
        memory_attention_rope_feat_sizes=[side // 16, side // 16],
        enable_temporal_pos_encoding_for_object_pointers=False,
        enable_occlusion_spatial_embedding=False,
    )


def prompt_interval(frames: int) -> int:
    """Frames between one set of points and the next: at least four sets in a video, and one in a hundred frames."""
    return min(max(frames // 4, 1), _LONGEST_INTERVAL)


class Sam2:
    """Follows one person through a video whose frames are handed over in order; memory does not grow.

    Points are given where joints are sure and inside the frame: in the first frame that has enough of them, every
    `interval` frames after, and wherever the outline was lost although the joints are there.
    """

    def __init__(self, model: Sam2VideoModel, device: str, interval: int) -> None:
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        elif device == "cuda" and not torch.cuda.is_available():
            raise BadInput("device: cuda was asked for, but torch finds no CUDA device here; use device: auto")
        self._model = model.to(device)  # pyright: ignore[reportArgumentType]
        self._device = device
        self._interval = interval
        self._side = int(model.config.image_size)  # pyright: ignore[reportArgumentType]
        self._session: Sam2VideoInferenceSession | None = None
        self._prompted_at = 0

    def __call__(self, index: int, picture: np.ndarray, pose: Pose) -> np.ndarray:
        """(H, W) uint8 of 0 and 1 for (H, W, 3) uint8 RGB and the person's pose in it."""
        height, width = picture.shape[:2]
        points = prompt_points(pose)
        enough = len(points) >= _FEWEST_POINTS
        if self._session is None:
            if not enough:
                return np.zeros((height, width), np.uint8)
            self._session = self._open_session(height, width)
            self._prompted_at = index - self._interval
        session = self._session
        session.add_new_frame(self._pixels(picture), frame_idx=index)
        if enough and index - self._prompted_at >= self._interval:
            self._prompt(index, points, width, height)
        mask = self._segment(index, width, height)
        if enough and self._prompted_at != index and not mask.any():
            outputs = session.output_dict_per_obj[0]["non_cond_frame_outputs"]
            outputs.pop(index, None)
            session.frames_tracked_per_obj[0].pop(index, None)
            self._prompt(index, points, width, height)
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

    def _prompt(self, index: int, points: np.ndarray, width: int, height: int) -> None:
        assert self._session is not None
        coordinates = torch.from_numpy((points * (self._side / width, self._side / height)).astype(np.float32))
        inputs = {
            "point_coords": coordinates[None, None],
            "point_labels": torch.ones(1, 1, len(points), dtype=torch.int32),
        }
        self._session.add_point_inputs(0, index, inputs)
        self._session.obj_with_new_inputs = [_PERSON_ID]
        self._prompted_at = index

    def _segment(self, index: int, width: int, height: int) -> np.ndarray:
        logits = self._model(inference_session=self._session, frame_idx=index).pred_masks
        low = logits[0, 0].float().cpu().numpy()
        # Half-pixel centres, no corner alignment: the same as torch's bilinear interpolation.
        return (cv2.resize(low, (width, height), interpolation=cv2.INTER_LINEAR) > 0).astype(np.uint8)

    def _forget(self, index: int) -> None:
        """Drops what the model will not look at again."""
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
    """(n, 2) whole px of the prompted joints that are sure and inside the picture."""
    joints = pose.body[_PROMPTED]
    points = np.trunc(joints[confident(joints), :2])
    return points[((points >= 0) & (points < pose.size)).all(axis=1)]


def _drop_below(entries: dict, first: int) -> None:
    for index in [index for index in entries if index < first]:
        del entries[index]
