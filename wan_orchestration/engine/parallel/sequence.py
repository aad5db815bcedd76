"""Sequence parallelism: the tokens of one forward split over ranks, with exact attention (Ulysses, arXiv 2309.14509).

Each rank holds the same number of consecutive tokens, padded with zeros at the end. For self-attention the ranks
exchange tokens for heads: each rank then holds all tokens of its share of the heads. Neither tokens nor heads need to
divide evenly.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from wan_orchestration.engine.parallel.tensors import pad
from wan_orchestration.errors import BadInput


@dataclass
class SplitTokens:
    """How the ranks of a group share the tokens of the current forward."""

    group: dist.ProcessGroup
    heads: int
    total: int = 0
    """Tokens of the whole sequence. Set it before each forward."""

    def __post_init__(self) -> None:
        self.rank, self.degree = dist.get_rank(self.group), dist.get_world_size(self.group)
        if self.degree > self.heads:
            raise BadInput(
                f"sequence parallelism of degree {self.degree}: the transformer has {self.heads} attention heads, and "
                f"a rank needs at least one; start at most {self.heads} processes for a video"
            )

    @property
    def local(self) -> int:
        """Tokens on each rank, padding included."""
        return -(-self.total // self.degree)

    @property
    def start(self) -> int:
        """Index of this rank's first token in the whole sequence."""
        return self.rank * self.local

    def split(self, x: Tensor) -> Tensor:
        """This rank's part (1, local, ...) of the whole (1, total, ...)."""
        return pad(x[:, self.start : self.start + self.local], 1, self.local).contiguous()

    def gather(self, part: Tensor) -> Tensor:
        """The whole (1, total, C), on every rank, from this rank's (1, local, C)."""
        whole = part.new_empty(self.degree * self.local, part.shape[2])
        dist.all_gather_into_tensor(whole, part[0].contiguous(), group=self.group)
        return whole[None, : self.total]

    def heads_for_tokens(self, x: Tensor) -> Tensor:
        """From all heads of this rank's tokens (n, local, heads, d) to its heads of all tokens (n, total, share, d).

        Heads are padded with zeros to a multiple of the degree: 40 heads on 3 ranks cost as much as 42.
        """
        n, local, heads, width = x.shape
        x = pad(x, 2, heads + -heads % self.degree).unflatten(2, (self.degree, -1))
        received = self._exchange(x.permute(2, 0, 1, 3, 4))
        return received.transpose(0, 1).reshape(n, self.degree * local, -1, width)[:, : self.total]

    def tokens_for_heads(self, x: Tensor) -> Tensor:
        """The inverse of `heads_for_tokens`."""
        x = pad(x, 1, self.degree * self.local).unflatten(1, (self.degree, -1))
        received = self._exchange(x.transpose(0, 1))
        return received.permute(1, 2, 0, 3, 4).flatten(2, 3)[:, :, : self.heads]

    def _exchange(self, x: Tensor) -> Tensor:
        """Send x[i] to rank i of the group. Row i of the result comes from rank i."""
        sent = x.contiguous()
        received = torch.empty_like(sent)
        dist.all_to_all_single(received, sent, group=self.group)
        return received
