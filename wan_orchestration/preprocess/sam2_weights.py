"""Loads SAM 2's weights, the published package's file, into transformers' model."""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import Sam2HieraDetConfig, Sam2VideoConfig, Sam2VideoModel, Sam2VisionConfig

from wan_orchestration.errors import BadInput
from wan_orchestration.formats import describe
from wan_orchestration.preprocess.networks import Device

# Facts about sam2_hiera_large that its tensor shapes do not show: channels per head, window size of each stage, and the
# three blocks with global attention: the last of the third stage, the 10th and the 20th before it.
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


def load_sam2(path: Path, device: Device = "cpu", side: int = 1024) -> Sam2VideoModel:
    """The model in `sam2_hiera_large.pt`, float32. `side` is the side of its square input pictures, px.

    BadInput: it is another file or damaged, or a tensor is missing, unknown or of another shape.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        weights = content["model"]
        state = converted(weights)
        model = Sam2VideoModel(_config(state, side))
    except Exception as error:  # torch.load raises errors of many types for damaged bytes
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            raise
        raise BadInput(f"{path} is {describe(path)}, not sam2_hiera_large.pt, SAM 2's weights: {error!r}") from error
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if expected != found:
        wrong = sorted(set(expected.items()) ^ set(found.items()))
        raise BadInput(f"{path}: {len(wrong)} tensors do not fit SAM 2, such as {wrong[:3]}")
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()}, strict=True, assign=True)
    return model.eval().to(device)  # pyright: ignore[reportArgumentType]


def converted(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames the published package's tensors to transformers' names."""
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
    # Four groups of convolution, normalisation and activation (without weights), then a last convolution.
    if place == 12:
        return "mask_downsampler.final_conv"
    return f"mask_downsampler.layers.{place // 3}.{('conv', 'layer_norm')[place % 3]}"


def _config(state: Mapping[str, Tensor], side: int) -> Sam2VideoConfig:
    backbone = "vision_encoder.backbone"
    blocks = sum(name.startswith(f"{backbone}.blocks.") and name.endswith("attn.qkv.weight") for name in state)
    # A stage starts with a block of another width.
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
