"""Work on a picture in overlapping bands of rows, which are blended: less memory, but faint seams between bands."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

BAND, OVERLAP = 32, 8
"""Rows of latents in a band, and the fewest that it shares with the next. A row of latents is 8 rows of pixels."""


def in_bands(run: Callable[[Tensor], Tensor], x: Tensor, rows_in: int, rows_out: int) -> Tensor:
    """Apply `run` to bands of x (..., H, W), and blend the results to (..., H', W').

    A row of latents is `rows_in` rows of x and `rows_out` rows of the result.
    """
    rows = x.shape[-2] // rows_in
    whole, known = x.new_empty(0), 0
    for start in starts(rows):
        part = run(x.narrow(-2, start * rows_in, min(BAND, rows) * rows_in))
        if not known:
            whole = part.new_empty(*part.shape[:-2], rows * rows_out, part.shape[-1])
        place, shared = whole.narrow(-2, start * rows_out, part.shape[-2]), (known - start) * rows_out
        if known:
            share = torch.linspace(0, 1, shared + 2, device=part.device, dtype=part.dtype)[1:-1, None]
            part[..., :shared, :] = torch.lerp(place[..., :shared, :], part[..., :shared, :], share)
        place.copy_(part)
        known = start + min(BAND, rows)
    return whole


def starts(rows: int) -> list[int]:
    """First rows of the bands: as few as cover `rows` rows of latents, evenly spread."""
    count = max(1, math.ceil((rows - OVERLAP) / (BAND - OVERLAP)))
    return [round(index * (rows - BAND) / (count - 1)) for index in range(count)] if count > 1 else [0]
