"""What a segment takes besides its denoising steps: the VAE, and the encoders of text, picture and face."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from gpu_parts.record import Record, Work
from gpu_parts.sizes import allow_tf32, engine_sizes, free, models, peak, precision, shape, timed
from wan_orchestration.engine import conditioning as cond
from wan_orchestration.engine.memory.placement import VAE_MAPS
from wan_orchestration.engine.parallel.ranks import Ranks
from wan_orchestration.settings.generate import PROMPT

STEPS_SECONDS = {"480p": 20 * 2.9, "720p": 20 * 11.1}
"""Seconds of a segment's denoising steps, if they meet their aim."""


def vae(work: Work, record: Record) -> None:
    """Encoding and decoding of a segment at both sizes, in TF32 and bfloat16, with and without cudnn.benchmark."""
    allow_tf32(convolutions=True)
    for size, dtype, benchmark in (
        ("480p", torch.float32, False),
        ("720p", torch.float32, False),
        ("480p", torch.bfloat16, False),
        ("480p", torch.float32, True),
        ("480p", torch.bfloat16, True),
        ("720p", torch.bfloat16, False),
    ):
        if work.tiny and dtype == torch.bfloat16:
            continue  # not every CPU supports it
        torch.backends.cudnn.benchmark = benchmark
        one_vae(work, record, size, dtype, benchmark)
        torch.backends.cudnn.benchmark = False


def one_vae(work: Work, record: Record, size: str, dtype: torch.dtype, benchmark: bool) -> None:
    model, segment, found = models(work, vae_dtype=dtype).vae(), shape(work, size), {}
    name = "bfloat16" if dtype == torch.bfloat16 else ("TF32" if work.device == "cuda" else "float32")
    what = f"{size}, {name}" + (", cudnn.benchmark" if benchmark else "")
    video = cond.to_tensor(
        np.zeros((segment.frames, segment.height, segment.width, 3), np.uint8), torch.device(work.device)
    )
    try:
        # A few frames first, which load libraries and let cudnn.benchmark finish its trials.
        warm = model.encode_video(video[:, :, :9])
        model.decode_video(warm)
        free(work)
        # Like the plan: the VAE, and what work on a segment takes on top.
        with peak(work, found):
            latents: list[torch.Tensor] = []
            pose = timed(work, lambda: latents.append(model.encode_video(video)))
            known = timed(work, lambda: model.encode_video(video, still_from=1))
            decode = timed(work, lambda: model.decode_video(latents[0]))
    except Exception as error:
        record.cannot(what, error)
        return
    total = pose + known + decode
    figures: dict[str, Any] = {
        "encode pose, s": pose,
        "encode known, s": known,
        "decode, s": decode,
        "a segment, s": total,
    }
    figures["of the steps' aim"] = f"{total / STEPS_SECONDS[size]:.1%}"
    if found:
        sizes = engine_sizes(work)
        maps = VAE_MAPS * sizes.vae_width * 4 * segment.height * segment.width * dtype.itemsize
        # The plan counts one video. Here the encoder's input exists beside the decoder's output.
        plan = (sizes.vae * dtype.itemsize // 4 + maps + 2 * segment.video) / 1e9
        figures |= found | {"plan GB": plan}
    # Exact results only. The report uses the last row of a size.
    exact = {"size": size, "outside": total} if dtype == torch.float32 and not benchmark else {}
    record.row(what, figures, **exact)
    free(work)


def encoders(work: Work, record: Record) -> None:
    """The encoders of text and picture, which run once a job, and of the face, which runs once a segment."""
    allow_tf32(convolutions=True)
    device, dtype = torch.device(work.device), precision(work)
    here = models(work)

    def measure(what: str, how_often: str, call: Callable[[], object], is_face: bool = False) -> None:
        found: dict[str, Any] = {}
        try:
            with torch.no_grad(), peak(work, found):
                first = timed(work, call)
                again = timed(work, call)
            record.row(
                what,
                {"first, s": first, "again, s": again, **found},
                note=how_often,
                **({"face": again} if is_face else {}),
            )
        except Exception as error:
            record.cannot(what, error)

    here.text_encoder()
    prompt = partial(cond.encode_prompt, PROMPT, here.tokenizer())
    measure("prompt (T5)", "once for each prompt", lambda: prompt(here.text_encoder()))
    here.free("text_encoder")
    picture = torch.zeros(1, 3, 1, 480, 832, device=device)
    here.image_encoder()
    measure("picture (CLIP)", "once a job", lambda: cond.encode_picture(picture, here.image_encoder()))
    here.free("image_encoder")
    transformer = face_encoder(work, here, device, dtype)
    side, frames = transformer.config["motion_encoder_size"], shape(work, "480p").frames
    face = np.zeros((frames, side, side, 3), np.uint8)
    measure(f"face, {frames} frames", "once a segment", lambda: transformer.encode_face(face, Ranks()), is_face=True)


def face_encoder(work: Work, here: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """A transformer with few blocks. Its motion and face encoders are complete."""
    if work.tiny:
        return here.transformer()
    from random_14b import random_weights

    from wan_orchestration.families.animate.transformer import AnimateTransformer

    return random_weights(lambda: AnimateTransformer(added_kv_proj_dim=5120, num_layers=5), device, dtype)
