"""A picture worked on in bands of rows that overlap and are blended: less memory, faint differences where they meet."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

BAND, OVERLAP = 32, 8
"""Rows of latents, each 8 rows of pixels, in a band and in what it shares with the next at least."""


def in_bands(run: Callable[[Tensor], Tensor], x: Tensor, rows_in: int, rows_out: int) -> Tensor:
    """`run` over bands of (..., H, W), of which `rows_in` rows make a row of latents, joined to (..., H', W').

    `run` gives `rows_out` rows for each row of latents.
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
    """First rows of the fewest bands that make up so many rows, evenly spread."""
    count = max(1, math.ceil((rows - OVERLAP) / (BAND - OVERLAP)))
    return [round(index * (rows - BAND) / (count - 1)) for index in range(count)] if count > 1 else [0]
