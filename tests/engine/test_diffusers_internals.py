"""Private parts of diffusers and transformers still exist and work as the engine expects."""

import torch
from diffusers.models.attention_dispatch import AttentionBackendName
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d
from diffusers.models.transformers.transformer_wan_animate import WanAnimateTransformer3DModel, WanAttnProcessor
from pins import private_part
from transformers import UMT5Config, UMT5EncoderModel

from wan_orchestration.engine.diffusers_internals import AttentionProcessor, causal_padding, kept_in_float32

FILE = "engine/diffusers_internals.py"


def test_diffusers_keeps_some_weights_in_float32():
    with torch.device("meta"):
        model = WanAnimateTransformer3DModel(num_layers=5, added_kv_proj_dim=5120)
    with private_part("diffusers", FILE):
        assert kept_in_float32(model, "blocks.0.scale_shift_table")
        assert kept_in_float32(model, "condition_embedder.time_embedder.linear_1.weight")
        assert not kept_in_float32(model, "blocks.0.attn1.to_q.weight")


def test_transformers_keeps_some_weights_in_float32():
    config = UMT5Config(d_model=8, d_ff=8, d_kv=4, num_layers=1, num_heads=2, vocab_size=10)
    with torch.device("meta"):
        model = UMT5EncoderModel(config)
    with private_part("transformers", FILE):
        assert kept_in_float32(model, "encoder.block.0.layer.1.DenseReluDense.wo.weight")
        assert not kept_in_float32(model, "encoder.block.0.layer.1.DenseReluDense.wi_0.weight")


def test_a_causal_convolution_pads_only_before_the_first_frame():
    with private_part("diffusers", FILE):
        assert causal_padding(WanCausalConv3d(2, 2, (3, 5, 3), padding=(1, 2, 1))) == (2, 2, 1)
        assert causal_padding(WanCausalConv3d(2, 2, (3, 1, 1), stride=(2, 1, 1))) == (0, 0, 0)


def test_processors_have_the_attributes_that_diffusers_reads():
    with private_part("diffusers", FILE):
        ours = {name for name in vars(AttentionProcessor) if not name.startswith("__")}
        theirs = {name for name in vars(WanAttnProcessor) if not name.startswith("__")}
        assert ours == theirs
        assert AttentionBackendName("_flash_3")
