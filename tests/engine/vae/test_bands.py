"""Bands of a picture: exact for operations that see only their own rows, and blended where bands overlap."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from wan_orchestration.engine.vae import bands
from wan_orchestration.engine.vae.layers import use_own_layers
from wan_orchestration.engine.vae.model import AnimateVae


@pytest.mark.parametrize("rows", [4, 32, 33, 60, 90])
def test_bands_cover_the_picture_and_overlap(rows):
    starts = bands.starts(rows)
    band = min(bands.BAND, rows)
    assert starts[0] == 0 and starts[-1] + band == rows
    assert all(band - (later - earlier) >= bands.OVERLAP for earlier, later in pairwise(starts))


def test_operations_on_single_rows_are_exact():
    x = torch.rand(1, 3, 2, 90 * 8, 5)

    def run(part):
        return F.avg_pool3d(part, (1, 8, 1))

    assert torch.allclose(bands.in_bands(run, x, 8, 1), run(x), atol=1e-6)
    grown = bands.in_bands(lambda part: part.repeat_interleave(8, -2), run(x), 1, 8)
    assert torch.allclose(grown, run(x).repeat_interleave(8, -2), atol=1e-6)


def test_a_vae_in_bands_gives_a_similar_picture():
    torch.manual_seed(0)
    vae = AnimateVae(base_dim=4).eval()
    use_own_layers(vae, by_frames=True)
    video = F.interpolate(torch.rand(1, 3, 5, 8, 4), (5, 512, 64), mode="trilinear") * 2 - 1
    latents = vae.encode_video(video)
    decoded = vae.decode_video(latents)
    vae.tiled = True
    assert (vae.encode_video(video) - latents).abs().mean() < 0.05 * latents.std()
    assert (vae.decode_video(latents) - decoded).abs().mean() < 0.05 * decoded.std()
