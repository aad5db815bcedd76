"""What Wan2.2-Animate says of itself, without model code."""

import math

from wan_orchestration.families.family import (
    TRANSFORMER,
    Family,
    Layout,
    SegmentSettings,
    Span,
    diffusers_layout,
    keep_nothing,
)

CLIPS = {"src_pose": "src_pose.mp4", "src_face": "src_face.mp4", "src_ref": "src_ref.png"}

REPLACEMENT_CLIPS = {"src_bg": "src_bg.mp4", "src_mask": "src_mask.mp4"}


def spans(settings: SegmentSettings, frames: int) -> list[Span]:
    """Segments of clip_len frames. Each after the first repeats refert_num frames; the last one may be shorter."""
    stride = settings.clip_len - settings.refert_num
    count = max(1, math.ceil((frames - settings.refert_num) / stride))
    found = [Span(index * stride, settings.clip_len, settings.refert_num if index else 0) for index in range(count)]
    if settings.trim_last_clip:
        last = found[-1]
        found[-1] = last._replace(length=min(last.length, enough_frames(frames - last.start)))
    return found


def enough_frames(wanted: int) -> int:
    """The smallest length of a segment, 4n+1 and at least 5, that holds this many frames."""
    return max(5, -(-(wanted - 1) // 4) * 4 + 1)


def clip_names(mode: str) -> dict[str, str]:
    """File names of the clips that a mode needs, by name of the input."""
    return CLIPS | REPLACEMENT_CLIPS if mode == "replace" else CLIPS


RELIGHTING_LORA = "relighting_lora.ckpt"

ESTIMATORS = "process_checkpoint"
"""Folder of the networks that preprocessing can use."""

_OPTIONAL = {
    RELIGHTING_LORA: "the relighting LoRA",
    f"{ESTIMATORS}/det/*": "the person detector for raw videos",
    f"{ESTIMATORS}/pose2d/*": "the ViTPose estimator for raw videos",
    f"{ESTIMATORS}/sam2/*": "SAM 2 for replacement masks",
}

# Names in the original layout.
TOKENIZER = "google/umt5-xxl"
VAE = "Wan2.1_VAE.pth"
TEXT_ENCODER = "models_t5_umt5-xxl-enc-bf16.pth"
IMAGE_ENCODER = "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"

ANIMATE = Family(
    name="animate",
    title="Wan2.2-Animate",
    summary="sees the motion as a skeleton and a face; can also replace people in a video",
    prompt_example=None,
    variants=("only",),
    defaults={"only": {}},
    presets={
        "only": {
            "exact": {},
            "balanced": {"step_cache": 2, "trim_last_clip": True},
            "fast": {"sampling_steps": 6, "shift": 5.0, "sample_solver": "unipc", "trim_last_clip": True},
            "draft": {"sampling_steps": 6, "sample_solver": "unipc", "step_cache": 2, "trim_last_clip": True},
        }
    },
    foreign=frozenset({"variant", "prompt_ref", "empty_slots", "driving_cache", "driving_cache_fp8"}),
    foreign_preprocess=frozenset(),
    fps=None,
    spans=spans,
    clips=clip_names,
    keep=keep_nothing,
    driving="src_pose",
    ready_clips=True,
    repositories={"only": ("Wan-AI/Wan2.2-Animate-14B",)},
    layouts={
        # Not read: xlm-roberta-large, process_checkpoint/FLUX.1-Kontext-dev, scheduler, pictures. `*` also matches
        # "/": the published ViTPose is a folder of many files.
        "original": Layout(
            needed={
                "only": (
                    "config.json",
                    f"{TRANSFORMER}*.safetensors",
                    f"{TRANSFORMER}.safetensors.index.json",
                    VAE,
                    TEXT_ENCODER,
                    IMAGE_ENCODER,
                    f"{TOKENIZER}/*",
                )
            },
            transformer={"only": f"{TRANSFORMER}.safetensors.index.json"},
            config="config.json",
            transformer_class="WanAnimateModel",
            vae=VAE,
            text_encoder=TEXT_ENCODER,
            image_encoder=IMAGE_ENCODER,
            tokenizer=TOKENIZER,
            signs=(VAE, TEXT_ENCODER, IMAGE_ENCODER, f"{TRANSFORMER}*"),
            examples=f"config.json, {TRANSFORMER}-*.safetensors, {VAE}, ...",
            optional=_OPTIONAL,
        ),
        "diffusers": diffusers_layout(
            ("only",), "WanAnimateTransformer3DModel", ("model_index.json", "transformer"), _OPTIONAL
        ),
    },
)
