"""Private parts of diffusers and transformers that the engine needs, each with the reason."""

from typing import Any

from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d
from torch import nn


class AttentionProcessor:
    """Base of our attention processors. diffusers reads these two attributes on every processor.

    None keeps diffusers from choosing a kernel and from splitting the sequence by itself.
    """

    _attention_backend = None
    _parallel_config = None


def causal_padding(conv: WanCausalConv3d) -> tuple[int, int, int]:
    """Frames of padding before the first frame, rows on each side, columns on each side.

    The class sets its public `padding` to zero and keeps the real values in a private attribute.
    """
    padding: Any = conv._padding
    columns, _, rows, _, frames, _ = padding
    return frames, rows, columns


def kept_in_float32(model: nn.Module, name: str) -> bool:
    """Whether a parameter of a diffusers or transformers model stays in float32, independent of the model's dtype.

    Both libraries apply this list in `from_pretrained`, but offer no way to ask for it.
    """
    keep = getattr(model, "_keep_in_fp32_modules", None) or ()
    return bool(set(keep) & set(name.split(".")))
