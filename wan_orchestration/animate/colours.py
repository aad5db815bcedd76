"""Matches the colours of one segment to another's: means and standard deviations of L, a and b.

Reinhard, Ashikhmin, Gooch, Shirley: Color Transfer between Images (2001), in CIE L*a*b* of sRGB under D65.
"""

import torch
from torch import Tensor

Colours = tuple[float, ...]
"""Mean of L, a, b, then their standard deviations."""

MOST_STRETCH = 1.25
"""Largest factor for a standard deviation: a segment may rightly show more or fewer colours than the first."""

_TO_XYZ = ((0.4124564, 0.3575761, 0.1804375), (0.2126729, 0.7151522, 0.0721750), (0.0193339, 0.1191920, 0.9503041))
_WHITE = (0.95047, 1.0, 1.08883)
_DELTA = 6 / 29


def colours_of(video: Tensor) -> Colours:
    """Colours of a segment (3, T, H, W) in [-1, 1]. Works frame by frame."""
    sums, squares = torch.zeros(2, 3, dtype=torch.float64, device=video.device)
    for frame in video.unbind(1):
        lab = to_lab(frame).double()
        sums += lab.mean(dim=(1, 2))
        squares += (lab**2).mean(dim=(1, 2))
    means = sums / video.shape[1]
    spreads = (squares / video.shape[1] - means**2).clamp(min=0).sqrt()
    return (*means.tolist(), *spreads.tolist())


def matched(video: Tensor, wanted: Colours) -> Tensor:
    """The segment (3, T, H, W) in [-1, 1] with the wanted colours. A segment with NaN is returned unchanged."""
    own = torch.tensor(colours_of(video), dtype=torch.float32, device=video.device).view(2, 3, 1, 1)
    if not torch.isfinite(own).all():
        return video
    target = torch.tensor(wanted, dtype=torch.float32, device=video.device).view(2, 3, 1, 1)
    stretch = (target[1] / own[1].clamp(min=1e-3)).clamp(1 / MOST_STRETCH, MOST_STRETCH)
    result = torch.empty_like(video)
    for index, frame in enumerate(video.unbind(1)):
        result[:, index] = from_lab((to_lab(frame) - own[0]) * stretch + target[0])
    return result


def to_lab(frame: Tensor) -> Tensor:
    """L, a, b (3, H, W) of sRGB (3, H, W) in [-1, 1]."""
    rgb = (frame.float().clamp(-1, 1) + 1) / 2
    linear = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = torch.einsum("ij,jhw->ihw", rgb.new_tensor(_TO_XYZ), linear) / rgb.new_tensor(_WHITE).view(3, 1, 1)
    x, y, z = torch.where(xyz > _DELTA**3, xyz.clamp(min=1e-8) ** (1 / 3), xyz / (3 * _DELTA**2) + 4 / 29)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def from_lab(lab: Tensor) -> Tensor:
    """sRGB (3, H, W) in [-1, 1] of L, a, b (3, H, W). Colours outside sRGB are clipped."""
    y = (lab[0] + 16) / 116
    roots = torch.stack([y + lab[1] / 500, y, y - lab[2] / 200])
    xyz = torch.where(roots > _DELTA, roots**3, 3 * _DELTA**2 * (roots - 4 / 29)) * lab.new_tensor(_WHITE).view(3, 1, 1)
    linear = torch.einsum("ij,jhw->ihw", torch.linalg.inv(lab.new_tensor(_TO_XYZ)), xyz).clamp(0, 1)
    rgb = torch.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear.clamp(min=1e-8) ** (1 / 2.4) - 0.055)
    return rgb * 2 - 1
