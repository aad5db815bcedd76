"""Matches the colours of segments in one of two ways.

`matched` gives a segment the means and standard deviations of L, a and b of another: Reinhard, Ashikhmin, Gooch,
Shirley: Color Transfer between Images (2001), in CIE L*a*b* of sRGB under D65.

`continued` compares the frames that a segment repeats with the frames that it was to repeat. Both show the same, so the
difference of their colours is the drift, and it is corrected in the whole segment.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

Colours = tuple[float, ...]
"""Mean of L, a, b, then their standard deviations."""

MOST_STRETCH = 1.25
"""Largest factor for a standard deviation: a segment may rightly show more or fewer colours than the first."""

BLOCK = 8
"""`continued` compares means of blocks of this many px a side, because details change from one decoding to the next."""
LEAST_DRIFT, MOST_DRIFT = 0.3, 8.0
"""`continued` corrects no smaller and no larger drift (CIE 1976). Frames that differ more show different things."""
LEAST_EXPLAINED = 0.7
"""Share of the difference that the correction must explain. Otherwise it may be chance: with the demo's mini model,
which does not drift, a correction explains up to 0.6."""
LEAST_NEARER = 0.8
"""The correction must bring the new frames at least this much nearer to the guide."""
ITERATIONS, SURE = 6, 3.0
"""Blocks that differ by more than `SURE` times the median show something else, and do not count (Tukey's biweight)."""
RIDGE = 1e-3
"""Holds the correction near the identity for colours that the frames do not have."""

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


def continued(video: Tensor, guide: Tensor) -> Tensor:
    """The segment (3, T, H, W) in [-1, 1] with the colours of the guide, which its first frames repeat.

    The correction maps RGB to RGB by a matrix and an offset. It is the same for all frames and pixels. A segment that
    shows no drift is returned unchanged.
    """
    repeated, guide = guide.shape[1], guide.to(video.device)
    correction = drift_correction(video[:, :repeated], guide)
    if correction is None or not _meets(correction, video[:, repeated : repeated + 1], guide[:, -1:]):
        return video
    matrix, offset = (one.to(video) for one in correction)
    result = torch.empty_like(video)
    for index, frame in enumerate(video.unbind(1)):
        result[:, index] = (torch.einsum("ij,jhw->ihw", matrix, frame) + offset.view(3, 1, 1)).clamp(-1, 1)
    return result


def drift_correction(drifted: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor] | None:
    """The matrix (3, 3) and the offset (3,) that take the colours of frames (3, T, H, W) to those of the wanted frames.

    None: they do not drift, or they show different things.
    """
    own, target = _blocks(drifted), _blocks(wanted)
    if not (torch.isfinite(own).all() and torch.isfinite(target).all()):
        return None
    identity = torch.eye(4, 3, dtype=own.dtype)
    terms, solution, weights = torch.cat([own, torch.ones_like(own[:, :1])], dim=1), identity, own[:, 0] * 0 + 1
    for _ in range(ITERATIONS):
        off = (terms @ solution - target).norm(dim=1)
        weights = (1 - (off / (SURE * off.median().clamp(min=1e-3))) ** 2).clamp(min=0) ** 2
        weighted = terms * weights[:, None] / weights.sum()
        products = weighted.T @ terms + RIDGE * torch.eye(4, dtype=own.dtype)
        solution = identity + torch.linalg.solve(products, weighted.T @ (target - own))
    moved = _lab_distance(terms @ solution, own, weights)
    before, after = (((each - target).square().sum(dim=1) * weights).sum() for each in (own, terms @ solution))
    if not LEAST_DRIFT <= moved <= MOST_DRIFT or after > (1 - LEAST_EXPLAINED) * before:
        return None
    return solution[:3].T.contiguous(), solution[3]


def _meets(correction: tuple[Tensor, Tensor], following: Tensor, last: Tensor) -> bool:
    """Whether the correction brings the first new frame nearer to the last frame of the guide, in most places.

    Otherwise only the repeated frames have drifted, and the model has taken the others' colours from the picture.
    """
    matrix, offset = correction
    own, target = _blocks(following), _blocks(last)
    before, after = ((each - target).norm(dim=1).median() for each in (own, own @ matrix.T + offset))
    return bool(after < LEAST_NEARER * before)


def _blocks(frames: Tensor) -> Tensor:
    """Mean colours of blocks of frames (3, T, H, W), (n, 3) float64 on the CPU."""
    means = F.avg_pool2d(frames.float().clamp(-1, 1).transpose(0, 1), BLOCK)
    return means.permute(0, 2, 3, 1).reshape(-1, 3).double().cpu()


def _lab_distance(one: Tensor, other: Tensor, weights: Tensor) -> float:
    """Weighted mean of the CIE 1976 colour differences of colours (n, 3) in [-1, 1]."""
    labs = [to_lab(each.T[:, None].float()) for each in (one, other)]
    return float(((labs[0] - labs[1]).norm(dim=0)[0] * weights).sum() / weights.sum())


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
