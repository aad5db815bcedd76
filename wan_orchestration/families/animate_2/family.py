"""What Wan-Animate-2 says of itself, without model code."""

from wan_orchestration.families.family import (
    DrivingCache,
    Family,
    KeepSettings,
    Layout,
    Maps,
    SegmentSettings,
    Span,
    VariantMark,
    diffusers_layout,
)

CLIPS = {"src_driving": "src_driving.mp4", "src_ref": "src_ref.png", "canvas": "canvas.json"}

FPS = 24.0

LEAST_FRAMES = 29
"""The last segment has at least so many frames."""

PROMPT = "视频中的人在做动作， 背景静止"

NEGATIVE_PROMPT = (
    "过曝，静态，细节模糊不清，字幕，静止，整体发灰，最差质量，低质量，JPEG压缩残留，丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的"
    "，毁容的，形态畸形的肢体，手指融合，静止不动的画面，三条腿"
)


def padded_frames(frames: int, clip_len: int) -> int:
    """Frames of a video with the ones that its last segment has in addition, as published."""
    rest = (frames - 1) % (clip_len - 1)
    return frames + (LEAST_FRAMES - 1 - rest if rest < LEAST_FRAMES - 1 else 4 - rest % 4)


def spans(settings: SegmentSettings, frames: int) -> list[Span]:
    """Segments of clip_len frames; each begins with the last frame of the one before, and the last one is shorter.

    If the frames fit exactly, the published code makes one more segment, of which the video shows nothing. It is left
    out here.
    """
    padded, found, start = padded_frames(frames, settings.clip_len), [], 0
    while start + (1 if found else 0) < frames:
        found.append(Span(start, min(settings.clip_len, padded - start), 1 if found else 0))
        start += found[-1].length - 1
    return found


def keep(settings: KeepSettings, maps: Maps, ranks: int, copies: int) -> list[DrivingCache]:
    """Keys and values, or the blocks' inputs, on the device or in host memory.

    Of host memory, two blocks' parts are on the device at a time. Inputs and 8 bits need room to compute a block's keys
    and values.
    """
    one = maps.bytes // ranks
    both = 2 * one
    packed = both // maps.itemsize + both // maps.head_dim if settings.driving_cache_fp8 else both
    room = both if settings.driving_cache_fp8 else 0
    ways = [
        DrivingCache("device", maps.layers * packed + room),
        DrivingCache("inputs", maps.layers * one + both),
        DrivingCache("host", 2 * packed + room, maps.layers * packed * ranks * copies),
        DrivingCache("host-inputs", 2 * one + both, maps.layers * one * ranks * copies),
    ]
    return [way for way in ways if settings.driving_cache in ("auto", way.name)]


def clip_names(mode: str) -> dict[str, str]:
    """File names of the clips, by name of the input."""
    return CLIPS


_FOLDER, _MODELS = "wan_animate_2", "videomodel/Wan-AI"
CHECKPOINTS = {
    "distilled": f"{_FOLDER}/wan_animate_2_bf16_distillation.safetensors",
    "base": f"{_FOLDER}/wan_animate_2_bf16.safetensors",
}
"""The transformer's file in the original layout, by variant."""

_CONFIG = f"{_FOLDER}/config.json"
"""In snapshots of other widths; the published repository has none."""

_VAE = f"{_MODELS}/vae.pth"
_TEXT_ENCODER = f"{_MODELS}/models_t5_umt5-xxl-enc-bf16.pth"
_IMAGE_ENCODER = f"{_MODELS}/models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"
_TOKENIZER = f"{_MODELS}/umt5-xxl"
_SHARED = (_VAE, _TEXT_ENCODER, _IMAGE_ENCODER, f"{_TOKENIZER}/*")
_BLOCKS = "modular_model_index.json"
LOG_SCALE = {"distilled": -1.3, "base": 0.0}
"""What is added to the logits of the keys of generated frame 1, by variant."""

ANIMATE_2 = Family(
    name="animate-2",
    title="Wan-Animate-2",
    summary="sees the driving video itself; the prompt should describe the character",
    prompt_example="A young woman with short dark hair in a red coat. Background: a quiet street at dusk.",
    variants=("distilled", "base"),
    defaults={
        variant: {
            "clip_len": 81,
            "sampling_steps": steps,
            "guide_scale": guidance,
            "prompt": PROMPT,
            "negative_prompt": NEGATIVE_PROMPT,
        }
        for variant, steps, guidance in (("distilled", 10, 1.0), ("base", 40, 3.0))
    },
    presets={
        "distilled": {
            "exact": {},
            "balanced": {"step_cache": 2},
            "fast": {"sampling_steps": 6},
            "draft": {"sampling_steps": 6, "step_cache": 2},
        },
        "base": {
            "exact": {},
            "balanced": {"step_cache": 2},
            "fast": {"sampling_steps": 20},
            "draft": {"sampling_steps": 20, "step_cache": 3},
        },
    },
    foreign=frozenset(
        {"mode", "refert_num", "pose_strength", "face_strength", "use_relighting_lora", "trim_last_clip"}
    ),
    foreign_preprocess=frozenset(
        {"mode", "channel_order", "person", "retarget", "max_gap", "masks", "mask_iterations", "mask_kernel"}
        | {"mask_columns", "mask_rows", "empty_mask", "mask_hints", "keypoints", "mask_file"}
    ),
    fps=FPS,
    spans=spans,
    clips=clip_names,
    keep=keep,
    driving="src_driving",
    ready_clips=False,
    repositories={
        "distilled": ("Wan-AI/Wan2.2-Animate-2-14B", "Wan-AI/Wan2.2-Animate-2-14B-Distilled-Diffusers"),
        "base": ("Wan-AI/Wan2.2-Animate-2-14B", "Wan-AI/Wan2.2-Animate-2-14B-Diffusers"),
    },
    layouts={
        "original": Layout(
            # Not read: xlm-roberta-large.
            needed={variant: (file, *_SHARED) for variant, file in CHECKPOINTS.items()},
            transformer=CHECKPOINTS,
            config=_CONFIG,
            transformer_class="WanAnimate2Model",
            vae=_VAE,
            text_encoder=_TEXT_ENCODER,
            image_encoder=_IMAGE_ENCODER,
            tokenizer=_TOKENIZER,
            signs=(_FOLDER, f"{_FOLDER}/*"),
            examples=f"{_FOLDER}/, {_MODELS}/vae.pth, ...",
            optional={_CONFIG: ""},
        ),
        "diffusers": diffusers_layout(
            tuple(CHECKPOINTS),
            "WanAnimate2Transformer3DModel",
            (_BLOCKS,),
            mark=VariantMark(
                _BLOCKS, "_blocks_class_name", {"WanAnimate2DistilledBlocks": "distilled", "WanAnimate2Blocks": "base"}
            ),
        ),
    },
)
