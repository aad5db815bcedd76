"""diffusers' modular pipeline for Wan-Animate-2, unmodified, on a snapshot in the Diffusers layout."""

import inspect
import json
import math
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from diffusers import ModularPipeline, WanAnimate2Transformer3DModel
from diffusers.models.transformers.transformer_wan_animate_2 import MLPProj
from PIL import Image
from safetensors.torch import load_file


def measure(work: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Seconds by phase, from the clips on disk to the mp4 on disk.

    The blocks are compiled as the class's documentation asks for, by `compile_repeated_blocks`, if the side is not
    `stock-eager`. A segment with one denoising step comes first: its seconds are those of "compile", and its CPU time
    and that of the compiler's processes is left out.
    """
    started = time.perf_counter()
    pipeline = load(Path(work["snapshot"]), device)
    seconds = {"load": time.perf_counter() - started, "driving": 0.0, "denoise": 0.0, "decode": 0.0}
    if work["side"] != "stock-eager":
        pipeline.transformer.compile_repeated_blocks()
    started, cpu = time.perf_counter(), time.process_time()
    video(pipeline, work | {"steps": 1}, work["clip_len"])
    seconds["compile"], cpu = time.perf_counter() - started, time.process_time() - cpu

    phases = {"extract": "driving", "cached": "denoise"}
    transformer, vae = pipeline.transformer, pipeline.vae
    transformer.forward = _timed(transformer.forward, seconds, lambda given: phases[given["kv_cache_mode"]])
    vae.decode = _timed(vae.decode, seconds, lambda given: "decode")
    started = time.perf_counter()
    segments = video(pipeline, work)
    total = time.perf_counter() - started
    return seconds | {"total": total, "steps": work["steps"] * segments, "cpu_seconds": time.process_time() - cpu}


def load(snapshot: Path, device: torch.device) -> Any:
    """The pipeline, in float32 on the CPU. Its class expects CLIP features of width 1280, so others are made to fit."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    pipeline: Any = ModularPipeline.from_pretrained(str(snapshot))
    others = [name for name in pipeline.pretrained_component_names if name not in ("transformer", "vae")]
    pipeline.load_components(names=others, dtype=dtype)
    pipeline.load_components(names="vae", dtype=torch.float32)
    config = json.loads((snapshot / "transformer/config.json").read_text())
    wanted = set(inspect.signature(WanAnimate2Transformer3DModel.__init__).parameters)
    transformer = WanAnimate2Transformer3DModel(**{name: value for name, value in config.items() if name in wanted})
    weights = {}
    for file in sorted((snapshot / "transformer").glob("*.safetensors")):
        weights |= load_file(file)
    transformer.img_emb = MLPProj(weights["img_emb.proj.0.weight"].shape[0], config["dim"])
    transformer.load_state_dict(weights)
    pipeline.update_components(transformer=transformer.to(dtype).eval())
    return pipeline.to(device)


def video(pipeline: Any, work: dict[str, Any], most: int | None = None) -> int:
    """From clips on disk, `most` frames of them, to the mp4 on disk; returns how many segments were generated."""
    from wan_orchestration.settings.generate import PROMPT
    from wan_orchestration.video.reader import FrameReader
    from wan_orchestration.video.writer import write_segment

    job = Path(work["job"])
    with FrameReader(job / "src_driving.mp4") as reader:
        driving = [Image.fromarray(frame) for frame in reader.read(range(reader.info.frames)[:most])]
        fps = reader.info.fps
    picture = Image.open(job / "src_ref.png")
    (frames,) = pipeline(
        prompt=PROMPT,
        image=picture,
        driving_video=driving,
        height=picture.height,
        width=picture.width,
        segment_frame_length=work["clip_len"],
        num_inference_steps=work["steps"],
        generator=torch.Generator("cpu").manual_seed(42),
        output="videos",
        output_type="np",
    )
    write_segment(job / "stock.mp4", ((frame * 255).round().astype("uint8") for frame in frames), fps)
    return max(1, math.ceil((len(driving) - 1) / (work["clip_len"] - 1)))


def _timed(
    function: Callable[..., Any], seconds: dict[str, float], phase: Callable[[dict[str, Any]], str]
) -> Callable[..., Any]:
    @wraps(function)  # the pipeline reads the signature
    def call(*arguments: Any, **options: Any) -> Any:
        started = time.perf_counter()
        result = function(*arguments, **options)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds[phase(options)] += time.perf_counter() - started
        return result

    return call
