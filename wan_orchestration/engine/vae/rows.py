"""The VAE's work split over ranks by rows of the picture, with exact results.

A convolution sees one row beyond a rank's own rows. Neighbouring ranks send each other this row before each
convolution, so every rank computes the same values as a single rank would, and nothing is blended. Attention sees the
whole picture at an eighth of its size; every rank computes all of it.
"""

from typing import Any

import torch
import torch.distributed as dist
from diffusers.models.autoencoders.autoencoder_kl_wan import (
    AutoencoderKLWan,
    WanAttentionBlock,
    WanCausalConv3d,
    WanResample,
)
from torch import Tensor, nn

from wan_orchestration.engine.parallel.ranks import Ranks
from wan_orchestration.engine.parallel.tensors import gather
from wan_orchestration.engine.vae.layers import joined


class SplitRows:
    """Makes the layers of a VAE work on this rank's rows of a picture.

    Rank 0 has the top rows, the last rank the bottom rows. The unit is a row of latents, 8 rows of pixels, so that each
    rank's part begins at a whole row in every layer.
    """

    def __init__(self, vae: AutoencoderKLWan, ranks: Ranks) -> None:
        self.ranks = ranks
        self.latent_rows: list[int] = []
        """Rows of latents on each rank. Empty while pictures are not split."""
        for module in (*vae.encoder.modules(), *vae.decoder.modules()):
            if isinstance(module, WanCausalConv3d) and module.kernel_size[1] == 3:
                self._hook(module, self._add_neighbours, self._remove_neighbours)
            elif isinstance(module, WanResample) and module.mode.startswith("upsample"):
                assert isinstance(module.resample, nn.Sequential)
                self._hook(module.resample[1], self._add_neighbours, self._remove_neighbours)
            elif isinstance(module, WanResample) and module.mode.startswith("downsample"):
                # Its convolution has stride 2 and sees only the row below.
                self._hook(module.resample, self._add_below)
            elif isinstance(module, WanAttentionBlock):
                self._hook(module, self._join_input, self.take)

    def begin(self, latent_rows: int) -> bool:
        """Start to split pictures with this many rows of latents. False if there are fewer rows than ranks."""
        share, more = divmod(latent_rows, self.ranks.size)
        self.latent_rows = [share + (rank < more) for rank in range(self.ranks.size)] if share else []
        return bool(share)

    def end(self) -> None:
        self.latent_rows = []

    def take(self, picture: Tensor, scale: int = 1) -> Tensor:
        """This rank's rows of (..., H, W). A row of latents is `scale` rows of the picture."""
        before = sum(self.latent_rows[: self.ranks.rank])
        return picture.narrow(-2, scale * before, scale * self.latent_rows[self.ranks.rank])

    def join(self, rows: Tensor, scale: int = 1) -> Tensor:
        """All ranks' rows, (..., H, W), on every rank."""
        return gather(rows, [scale * count for count in self.latent_rows], rows.ndim - 2)

    def _hook(self, module: nn.Module, before: Any, after: Any = None) -> None:
        module.register_forward_pre_hook(lambda _, inputs: before(*inputs) if self.latent_rows else None)
        if after:
            module.register_forward_hook(lambda _, __, output: after(output) if self.latent_rows else None)

    def _add_neighbours(self, x: Tensor, cache: Tensor | None = None) -> tuple[Tensor | None, ...]:
        if cache is None:
            return (_stacked(self._between(x, above=True)),)
        # The cache holds the frames before. One exchange serves both.
        both = joined([cache, x])
        both = _stacked(self._between(both, above=True))
        return both[:, :, cache.shape[2] :], both[:, :, : cache.shape[2]]

    def _remove_neighbours(self, y: Tensor) -> Tensor:
        above, below = int(self.ranks.rank > 0), int(self.ranks.rank < self.ranks.size - 1)
        return y.narrow(-2, above, y.shape[-2] - above - below)

    def _add_below(self, x: Tensor) -> tuple[Tensor]:
        return (_stacked(self._between(x, above=False)),)

    def _join_input(self, x: Tensor) -> tuple[Tensor]:
        return (self.join(x),)

    def _between(self, x: Tensor, above: bool) -> list[Tensor]:
        """The parts of x with one row from each neighbour: the rank above (only if `above`), x, the rank below."""
        rank, last = self.ranks.rank, self.ranks.size - 1
        top, bottom = (x.narrow(-2, row, 1).contiguous() for row in (0, x.shape[-2] - 1))
        upper, lower = torch.empty_like(top), torch.empty_like(bottom)
        exchange = []
        if rank > 0:
            exchange.append(dist.P2POp(dist.isend, top, rank - 1))
            if above:
                exchange.append(dist.P2POp(dist.irecv, upper, rank - 1))
        if rank < last:
            if above:
                exchange.append(dist.P2POp(dist.isend, bottom, rank + 1))
            exchange.append(dist.P2POp(dist.irecv, lower, rank + 1))
        for request in dist.batch_isend_irecv(exchange):
            request.wait()
        return [*([upper] if above and rank > 0 else []), x, *([lower] if rank < last else [])]


def _stacked(parts: list[Tensor]) -> Tensor:
    """Rows (n, C, ..., h, W) joined from top to bottom, channels last in memory."""
    return torch.cat([part.movedim(1, -1) for part in parts], -3).movedim(-1, 1)
