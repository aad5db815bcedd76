"""The VAE's encoder computes a linear codec; its decoder is trained by a shorter way to the same pictures."""

import numpy as np
import torch

from mini import codec as codecs
from mini import samples


def test_the_encoder_computes_the_codec(start):
    vae = start.models().vae()
    start.codec.install(vae)
    moving, skeleton = (video.transpose(0, 1) for video, _ in samples.codec_videos(np.random.default_rng(1), 2)[1:])
    for video in (moving, skeleton, torch.cat([moving[:, :1], torch.zeros_like(moving[:, 1:])], 1)):
        expected = start.codec.encode(video)
        assert expected.std() > 0.1
        assert (vae.encode_video(video[None])[0] - expected).abs().max() < 0.05

    still = moving[:, 3:4].expand(-1, 5, -1, -1)
    first, second = start.codec.encode(still).unbind(1)
    assert torch.allclose(first, second, atol=1e-4)


def test_the_decoder_is_the_classes_own(start):
    vae = start.models().vae()
    start.codec.install(vae)
    torch.manual_seed(0)
    codecs.prepare_decoder(vae)
    latents = torch.randn(16, 3, 8, 8)
    with torch.no_grad():
        first = codecs.decode(vae, latents[:, :1].transpose(0, 1), still=True)
        fours = codecs.decode(vae, latents[:, 1:].transpose(0, 1), still=False)
    video = torch.cat([first[:, 0], fours.flatten(0, 1)]).transpose(0, 1)
    assert video.std() > 0.05
    torch.testing.assert_close(vae.decode_video(latents[None]), video.clamp(-1, 1), atol=1e-4, rtol=1e-3)
