import numpy as np
import pytest
import torch
from diffusers import WanAnimateTransformer3DModel
from diffusers.models.transformers.transformer_wan_animate import WanRotaryPosEmbed

from wan_orchestration.engine.conditioning import to_tensor
from wan_orchestration.engine.parallel.ranks import Ranks
from wan_orchestration.engine.transformer.attention import choose_backend, rotate
from wan_orchestration.errors import BadInput
from wan_orchestration.families.animate.transformer import AnimateTransformer, FaceBranch

CPU = torch.device("cpu")
SMALL = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "text_dim": 8,
    "freq_dim": 16,
    "ffn_dim": 32,
    "num_layers": 5,
    "image_dim": 8,
    "added_kv_proj_dim": 24,
    "motion_encoder_channel_sizes": {str(4 << i): 4 for i in range(8)},
    "motion_style_dim": 8,
    "motion_dim": 4,
    "motion_encoder_dim": 8,
    "face_encoder_hidden_dim": 8,
}


def test_a_step_on_prepared_conditions_equals_the_stock_forward():
    torch.manual_seed(0)
    ours = AnimateTransformer(**SMALL).eval()
    stock = WanAnimateTransformer3DModel(**SMALL).eval()
    stock.load_state_dict(ours.state_dict())
    ours.prepare("native", None)
    latents, y, pose = torch.randn(1, 16, 3, 4, 6), torch.randn(1, 20, 3, 4, 6), torch.randn(1, 16, 2, 4, 6)
    text, image, face = (
        torch.randn(1, 512, 8),
        torch.randn(1, 257, 8),
        np.random.default_rng(0).integers(0, 256, (5, 512, 512, 3), np.uint8),
    )
    timestep = torch.tensor([500])
    with torch.no_grad():
        expected = stock(torch.cat([latents, y], 1), timestep, text, image, pose, to_tensor(face), return_dict=False)[0]
        context = ours.embed_context(text, image)
        motion = ours.encode_face(face, Ranks())
        for prepared in (context, ours.cross_keys(context)):
            flow = ours.denoise(latents, timestep, y, ours.embed_pose(pose), FaceBranch(prepared, motion=motion))
            assert torch.allclose(flow, expected, atol=1e-5)


def test_both_forms_of_the_rotation_agree(monkeypatch):
    cos, sin = WanRotaryPosEmbed(12, (1, 2, 2), 64)(torch.zeros(1, 16, 3, 4, 6))
    tables = cos[..., 0::2], sin[..., 1::2]
    x = torch.randn(1, 18, 2, 12)
    turned = rotate(x, tables)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert torch.allclose(turned, rotate(x, tables), atol=1e-6)


def test_a_kernel_that_does_not_run_here_is_refused():
    assert choose_backend("auto", CPU, torch.float32, 2, 12) == "native"
    with pytest.raises(BadInput, match="attention: flash3 does not run on this cpu device"):
        choose_backend("flash3", CPU, torch.float32, 2, 12)
