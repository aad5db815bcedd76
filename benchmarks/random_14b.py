"""Random weights of the 14B model's sizes. Time and memory are those of the real model; the videos are noise."""

from collections.abc import Callable
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import WanAnimateTransformer3DModel
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel, UMT5Config, UMT5EncoderModel

from wan_orchestration.cli.plan import TEXT_PARAMETERS, snapshot_sizes
from wan_orchestration.engine import models
from wan_orchestration.engine.diffusers_internals import kept_in_float32
from wan_orchestration.engine.models import Models
from wan_orchestration.engine.vae.model import AnimateVae
from wan_orchestration.families.animate.transformer import AnimateTransformer
from wan_orchestration.generate import segments as clips


def random_weights(build: Callable[[], Any], device: torch.device, dtype: torch.dtype) -> Any:
    """A model with random weights, created one by one. Its buffers are those of the class.

    If there is a GPU, it also draws the weights of a model in host memory: a CPU would take minutes.
    """
    drawing = torch.device("cuda") if torch.cuda.is_available() else device
    with init_empty_weights():
        model = build()
    for name, parameter in list(model.named_parameters()):
        wanted = torch.float32 if kept_in_float32(model, name) else dtype
        value = torch.empty(parameter.shape, device=drawing, dtype=wanted)
        scale = name.endswith(("weight", "gamma")) and parameter.squeeze().ndim == 1
        value = value.fill_(1) if scale else value.uniform_(-0.02, 0.02)
        module, _, last = name.rpartition(".")
        setattr(model.get_submodule(module), last, nn.Parameter(value.to(device), requires_grad=False))
    if isinstance(model, UMT5EncoderModel):
        model.tie_weights()
    return nn.Module.to(model, device).eval()


def transformer_14b() -> AnimateTransformer:
    return AnimateTransformer(added_kv_proj_dim=5120)


def stock_beside(transformer: AnimateTransformer) -> WanAnimateTransformer3DModel:
    """diffusers' transformer on the same tensors, so that one GPU can hold both."""
    with init_empty_weights():
        stock = WanAnimateTransformer3DModel.from_config(transformer.config)
    stock.load_state_dict(transformer.state_dict(), assign=True)
    return nn.Module.to(stock, transformer.patch_embedding.weight.device).eval().requires_grad_(False)


def text_encoder_14b() -> UMT5EncoderModel:
    return UMT5EncoderModel(
        UMT5Config(
            vocab_size=256384,
            d_model=4096,
            d_kv=64,
            d_ff=10240,
            num_layers=24,
            num_heads=64,
            feed_forward_proj="gated-gelu",
        )
    )


def image_encoder_14b() -> CLIPVisionModel:
    return CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=1280,
            intermediate_size=5120,
            num_hidden_layers=32,
            num_attention_heads=16,
            patch_size=14,
            hidden_act="gelu",
        )
    )


def use_random_weights() -> None:
    """Make the engine create random weights of the 14B model's sizes instead of reading a snapshot."""

    def transformer(self):
        device = torch.device("cpu") if self.quantization != "off" else self.weights_device
        return random_weights(transformer_14b, device, self.dtype)

    # The engine plans memory by the sizes of the snapshot, which is a small one here.
    models.text_encoder_size = lambda snapshot, dtype: TEXT_PARAMETERS * dtype.itemsize
    clips.sizes = lambda snapshot, dtype, quantized, vae_dtype: snapshot_sizes(None, quantized, vae_dtype)
    Models._load_transformer = transformer
    Models._load_vae = lambda self: random_weights(AnimateVae, self.device, self.vae_dtype)
    Models._load_text_encoder = lambda self: random_weights(text_encoder_14b, self.weights_device, self.dtype)
    Models._load_image_encoder = lambda self: random_weights(image_encoder_14b, self.device, torch.float32)
