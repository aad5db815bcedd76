"""Attention to the driving video, and what is kept of it, of Wan-Animate-2."""

import math

import pytest
import torch
from torch.nn.functional import pad

from wan_orchestration.engine.transformer.attention import KERNELS_WITH_LSE
from wan_orchestration.families.animate_2.attention import in_context
from wan_orchestration.families.animate_2.driving import Window
from wan_orchestration.families.animate_2.transformer import (
    UNCONDITIONAL_SKIPS,
    Animate2Transformer,
    InContextBranch,
)

SMALL = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 36,
    "text_dim": 8,
    "freq_dim": 16,
    "ffn_dim": 32,
    "num_layers": 11,
    "image_dim": 8,
    "added_kv_proj_dim": 24,
}


@pytest.mark.parametrize("log_scale", [0.0, -1.3])
@pytest.mark.parametrize("frames", [2, 4])
def test_attention_equals_a_softmax_over_all_places_of_the_window(frames, log_scale):
    """Of a segment that leaves places empty, and whose driving frames have more tokens than the generated ones."""
    torch.manual_seed(0)
    tokens, seen, room, clip_len = 4, 5, 6, 17
    window = Window.published(tokens, seen, frames, 256 * room, clip_len, log_scale)
    query, key, value = torch.randn(3, 1, frames * tokens, 2, 8)
    driving_key, driving_value = torch.randn(2, 1, (frames - 1) * seen, 2, 8)
    found = in_context(KERNELS_WITH_LSE["native"], query, key, value, driving_key, driving_value, window)

    def placed(x, count, whole):
        """Tokens (1, S, heads, d) in a window of `whole` frames, each with `room` places."""
        return pad(x[0].unflatten(0, (-1, count)), (0, 0, 0, 0, 0, room - count, 0, whole - x.shape[1] // count))

    slots = clip_len // 4 + 2
    keys, values = (placed(x, tokens, slots).flatten(0, 1) for x in (key, value))
    seen_keys, seen_values = (placed(x, seen, slots - 1) for x in (driving_key, driving_value))
    bias = torch.zeros(slots, room)
    bias[1] = log_scale
    for frame in range(frames):
        all_keys, all_values, added = keys, values, bias.flatten()
        if frame:
            all_keys = torch.cat([keys, seen_keys[frame - 1]])
            all_values = torch.cat([values, seen_values[frame - 1]])
            added = pad(added, (0, room))
        own = slice(frame * tokens, (frame + 1) * tokens)
        logits = torch.einsum("qhd,khd->hqk", query[0, own], all_keys) / math.sqrt(8) + added
        expected = torch.einsum("hqk,khd->qhd", logits.softmax(-1), all_values)
        assert torch.allclose(found[0, own], expected, atol=1e-6)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Animate2Transformer(**SMALL).eval()


def flows(model, where, eight_bits=False):
    """The flow of both guidance branches, twice."""
    torch.manual_seed(1)
    driving, latents, y = torch.randn(1, 16, 2, 6, 4), torch.randn(1, 16, 3, 4, 6), torch.randn(1, 20, 3, 4, 6)
    with torch.no_grad():
        context = model.embed_context(torch.randn(1, 512, 8), torch.randn(1, 257, 8))
        model.keep_driving(where, eight_bits)
        model.read_driving(driving, InContextBranch(context, "driving"), 3)
        model.driving.window = Window(6, 6, empty=3, empty_driving=1)
        branches = InContextBranch(context), InContextBranch(context, "uncond", UNCONDITIONAL_SKIPS)
        return torch.stack([model.denoise(latents, torch.tensor([500]), y, one) for one in branches * 2])


def test_what_is_kept_of_the_driving_video_changes_nothing(model):
    model.prepare("native", None)
    expected = flows(model, "device")
    assert torch.equal(expected[:2], expected[2:]) and not torch.allclose(expected[0], expected[1])
    for where in ("inputs", "host", "host-inputs"):
        assert torch.equal(flows(model, where), expected), where
    lossy = [flows(model, where, eight_bits=True) for where in ("device", "host")]
    assert torch.equal(*lossy)
    assert 0 < (lossy[0] - expected).abs().max() < 0.01 * expected.abs().max()
    assert torch.equal(flows(model, "host-inputs", eight_bits=True), expected), "8 bits are for keys and values"
