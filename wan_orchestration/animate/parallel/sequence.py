"""Sequence parallelism: the tokens of one forward split over ranks, with exact attention (Ulysses, arXiv 2309.14509).

Each rank holds the same number of consecutive tokens, zeros behind the last. For self-attention the ranks exchange
tokens for heads: each then holds all tokens of its share of the heads. Neither tokens nor heads need to divide evenly.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.transformers.transformer_wan_animate import WanAnimateFaceBlockCrossAttention
from torch import Tensor

from wan_orchestration.animate.parallel.ranks import lengthen
from wan_orchestration.errors import BadInput

Rotary = tuple[Tensor, Tensor]
"""Cosines and sines of the rotary embedding, (1, S, 1, d / 2) float32."""


@dataclass
class SplitTokens:
    """How the tokens of the current forward lie on the ranks of a group."""

    group: dist.ProcessGroup
    heads: int
    total: int = 0
    """Tokens of the whole sequence; set before each forward."""

    def __post_init__(self) -> None:
        self.rank, self.degree = dist.get_rank(self.group), dist.get_world_size(self.group)
        if self.degree > self.heads:
            raise BadInput(
                f"sequence parallelism of degree {self.degree}: the transformer has {self.heads} attention heads, and "
                f"a rank needs at least one; start at most {self.heads} processes for a video"
            )

    @property
    def local(self) -> int:
        """Tokens on each rank, zeros included."""
        return -(-self.total // self.degree)

    @property
    def start(self) -> int:
        return self.rank * self.local

    def split(self, x: Tensor) -> Tensor:
        """(1, total, ...) as this rank's (1, local, ...)."""
        return lengthen(x[:, self.start : self.start + self.local], 1, self.local).contiguous()

    def gather(self, part: Tensor) -> Tensor:
        """This rank's (1, local, C) as the whole (1, total, C), on every rank."""
        whole = part.new_empty(self.degree * self.local, part.shape[2])
        dist.all_gather_into_tensor(whole, part[0].contiguous(), group=self.group)
        return whole[None, : self.total]

    def heads_for_tokens(self, x: Tensor) -> Tensor:
        """(n, local, heads, d) of this rank's tokens as (n, total, share, d) of its share of the heads.

        Heads are filled up with zeros to a multiple of the degree: 40 of them on 3 ranks cost as much as 42.
        """
        n, local, heads, width = x.shape
        x = lengthen(x, 2, heads + -heads % self.degree).unflatten(2, (self.degree, -1))
        received = self._exchange(x.permute(2, 0, 1, 3, 4))
        return received.transpose(0, 1).reshape(n, self.degree * local, -1, width)[:, : self.total]

    def tokens_for_heads(self, x: Tensor) -> Tensor:
        """The inverse of `heads_for_tokens`."""
        x = lengthen(x, 1, self.degree * self.local).unflatten(1, (self.degree, -1))
        received = self._exchange(x.transpose(0, 1))
        return received.permute(1, 2, 0, 3, 4).flatten(2, 3)[:, :, : self.heads]

    def _exchange(self, x: Tensor) -> Tensor:
        """Send x[i] to rank i of the group; row i of what comes back is from rank i."""
        sent = x.contiguous()
        received = torch.empty_like(sent)
        dist.all_to_all_single(received, sent, group=self.group)
        return received


class FaceAttention:
    """Processor of a face adapter on local tokens.

    A token attends to the few face features of its own latent frame and to nothing else. The local tokens are cut where
    latent frames begin in the whole sequence, so that no communication is needed.
    """

    # diffusers looks for these on any processor.
    _attention_backend = None
    _parallel_config = None

    def __init__(self, tokens: SplitTokens) -> None:
        self.tokens = tokens

    def __call__(
        self,
        attn: WanAnimateFaceBlockCrossAttention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """(1, local, dim) tokens and (1, T, n, dim) face features of all latent frames to (1, local, dim)."""
        assert encoder_hidden_states is not None
        assert attention_mask is None
        tokens = self.tokens
        per_frame = tokens.total // encoder_hidden_states.shape[1]
        first, last = tokens.start // per_frame, -(-(tokens.start + tokens.local) // per_frame)
        before, behind = tokens.start - first * per_frame, last * per_frame - tokens.start - tokens.local
        # Zeros behind the last token fall into frames that do not exist.
        frames = torch.arange(first, last, device=hidden_states.device).clamp(max=encoder_hidden_states.shape[1] - 1)
        features = attn.pre_norm_kv(encoder_hidden_states[0, frames])

        query = attn.norm_q(attn.to_q(attn.pre_norm_q(hidden_states)).unflatten(2, (attn.heads, -1)))
        query = F.pad(query[0], (0, 0, 0, 0, before, behind)).unflatten(0, (len(frames), per_frame))
        key = attn.norm_k(attn.to_k(features).unflatten(2, (attn.heads, -1)))
        value = attn.to_v(features).unflatten(2, (attn.heads, -1))
        attended = dispatch_attention_fn(query, key, value)
        attended = attended.flatten(2, 3).flatten(0, 1)[before : before + tokens.local].type_as(hidden_states)
        return attn.to_out(attended[None])
