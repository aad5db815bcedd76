"""Colours of segments, matched to those of the first or of the one before."""

import numpy as np
import torch
from media import moving_frames

from wan_orchestration.engine.colours import colours_of, continued, from_lab, matched, to_lab
from wan_orchestration.engine.conditioning import to_frames, to_tensor
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


RANDOM = torch.Generator().manual_seed(0)
GAIN, OFFSET = torch.tensor([1.04, 1.0, 0.96]).view(3, 1, 1, 1), torch.tensor([0.02, 0.0, -0.02]).view(3, 1, 1, 1)


def test_a_drift_of_repeated_frames_is_corrected_in_the_whole_segment():
    """Its end shows something else, so its own colours do not tell what the drift is."""
    clean = torch.cat([_scene(0, 2), _scene(1, 3)], dim=1)
    drifted = (clean * GAIN + OFFSET).clamp(-1, 1)
    corrected = continued(drifted + 0.02 * torch.randn(drifted.shape, generator=RANDOM), clean[:, :1])
    before, after = (to_lab(each[:, -1]) for each in (drifted, corrected))
    true = to_lab(clean[:, -1])
    assert (before - true).mean(dim=(1, 2)).norm() > 1.5
    assert (after - true).mean(dim=(1, 2)).norm() < 0.4


def test_without_drift_nothing_changes():
    clean = _scene(0, 5)
    noisy = clean + 0.05 * torch.randn(clean.shape, generator=RANDOM)
    assert continued(noisy, clean[:, :1]) is noisy, "details changed"
    assert continued(clean, clean[:, :1]) is clean
    assert continued(clean, _scene(7, 1)) is clean, "the frames show different things"
    once = torch.cat([clean[:, :1] * GAIN + OFFSET, clean[:, 1:]], dim=1)
    assert continued(once, clean[:, :1]) is once, "only the repeated frame has drifted"
    broken = clean * float("nan")
    assert continued(broken, clean[:, :1]) is broken


def _scene(seed: int, frames: int) -> torch.Tensor:
    """(3, frames, 64, 96): patches of 16 px in random colours."""
    random = torch.Generator().manual_seed(seed)
    patches = torch.rand(3, 4, 6, generator=random) * 1.6 - 0.8
    return patches.repeat_interleave(16, 1).repeat_interleave(16, 2)[:, None].expand(-1, frames, -1, -1).contiguous()
