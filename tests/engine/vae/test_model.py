import pytest
import torch
from diffusers import AutoencoderKLWan

from wan_orchestration.engine.vae import model as module
from wan_orchestration.engine.vae.layers import ChannelNorm, use_own_layers
from wan_orchestration.engine.vae.model import AnimateVae


@pytest.mark.parametrize("by_frames", [False, True], ids=["whole", "by frames"])
@pytest.mark.parametrize("chunk_bytes", [1, 200_000, 2**30], ids=["1", "3", "all"])
def test_chunks_of_any_length_give_the_stock_result(monkeypatch, chunk_bytes, by_frames):
    monkeypatch.setattr(module, "CHUNK_BYTES", chunk_bytes)
    torch.manual_seed(0)
    ours = AnimateVae(base_dim=4).eval()
    stock = AutoencoderKLWan(base_dim=4).eval()
    stock.load_state_dict(ours.state_dict())
    use_own_layers(ours, by_frames)
    video = torch.rand(1, 3, 29, 64, 64) * 2 - 1
    with torch.no_grad():
        latents = stock.encode(video)[0].mode()
        assert torch.allclose(ours.encode(video)[0].mode(), latents, atol=5e-5)
        assert torch.allclose(ours.decode(latents)[0], stock.decode(latents)[0], atol=5e-5)


def test_round_trip_of_the_normalisation():
    vae = AnimateVae(base_dim=4).eval()
    video = torch.rand(1, 3, 5, 32, 32)
    latents = vae.encode_video(video)
    assert latents.shape == (1, 16, 2, 4, 4)
    assert vae.decode_video(latents).shape == (3, 5, 32, 32)


def test_bfloat16_works_on_a_cpu_without_its_convolution(monkeypatch):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    vae = AnimateVae(base_dim=4).eval()
    use_own_layers(vae)
    video = torch.rand(1, 3, 5, 16, 16) * 2 - 1
    exact = vae.encode_video(video)
    vae.to(torch.bfloat16)
    assert (vae.encode_video(video) - exact).abs().mean() < 0.05 * exact.std()
    assert vae.decode_video(exact).isfinite().all()


def test_a_pixel_of_zeros_stays_zero():
    """As with `F.normalize`, which never divides by zero."""
    vae = AnimateVae(base_dim=4).eval()
    use_own_layers(vae)
    norm = next(module for module in vae.modules() if isinstance(module, ChannelNorm))
    assert torch.equal(norm(torch.zeros(1, 4, 1, 2, 2)), torch.zeros(1, 4, 1, 2, 2))


@pytest.mark.parametrize("chunk_bytes", [1, 2**30], ids=["1", "all"])
@pytest.mark.parametrize("still_from", [0, 1, 5])
def test_a_still_video_takes_less_work(monkeypatch, chunk_bytes, still_from):
    monkeypatch.setattr(module, "CHUNK_BYTES", chunk_bytes)
    torch.manual_seed(0)
    vae = AnimateVae(base_dim=4).eval()
    use_own_layers(vae)
    video = torch.zeros(1, 3, 61, 32, 32)
    video[:, :, :still_from] = torch.rand(1, 3, still_from, 32, 32) * 2 - 1
    frames = []
    vae.encoder.conv_in.register_forward_hook(lambda _, inputs, __: frames.append(inputs[0].shape[2]))
    plain = vae.encode_video(video)
    assert sum(frames) == 61
    frames.clear()
    assert torch.allclose(vae.encode_video(video, still_from), plain, atol=5e-5)
    assert sum(frames) < 45
    assert torch.allclose(vae.encode_video(video), plain, atol=5e-5)
