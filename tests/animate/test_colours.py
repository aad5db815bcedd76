"""Colours of segments, matched to those of the first."""

import numpy as np
import torch
from media import moving_frames

from wan_orchestration.animate.colours import colours_of, from_lab, matched, to_lab
from wan_orchestration.animate.conditioning import to_frames, to_tensor
from wan_orchestration.quality.frame_measures import FrameMeasures


def segment(seed: int = 0) -> torch.Tensor:
    return to_tensor(np.stack(moving_frames(6, 48, 64, seed)))[0]


def test_lab_and_back():
    frame = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert torch.allclose(from_lab(to_lab(frame)), frame, atol=2e-3)
    white, red = to_lab(torch.ones(3, 1, 1)), to_lab(torch.tensor([1.0, -1, -1]).view(3, 1, 1))
    assert torch.allclose(white.flatten(), torch.tensor([100.0, 0, 0]), atol=0.02)
    assert torch.allclose(red.flatten(), torch.tensor([53.24, 80.09, 67.20]), atol=0.05), "CIE's value of sRGB red"


def test_a_tint_is_removed():
    first, later = segment(), segment()
    tinted = (later * 0.85 + torch.tensor([0.08, 0.0, -0.1]).view(3, 1, 1, 1)).clamp(-1, 1)

    def drift(second: torch.Tensor) -> float:
        measures = FrameMeasures([6, 6])
        for frame in [*to_frames(first), *to_frames(second)]:
            measures.add(frame, frame)
        return measures.colour_drift()[1]

    assert drift(tinted) > 8
    assert drift(matched(tinted, colours_of(first))) < 1
    assert torch.allclose(matched(later, colours_of(later)), later, atol=5e-3)


def test_a_segment_with_nan_is_unchanged():
    broken = segment()
    broken[0, 2] = float("nan")
    assert matched(broken, colours_of(segment())) is broken
