"""What the blocks computed of a segment's driving frames, which all denoising steps of the segment read."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from wan_orchestration.engine.memory.prefetch import Prefetcher, aligned, host_memory, pin, views
from wan_orchestration.engine.parallel.sequence import SplitTokens
from wan_orchestration.engine.transformer.attention import Rotary

Where = Literal["device", "inputs", "host", "host-inputs"]
"""As `GenerateSettings.driving_cache`."""

EIGHT_BITS = torch.float8_e4m3fn
LARGEST = 448.0
"""Of EIGHT_BITS."""


@dataclass(frozen=True)
class Window:
    """How the tokens of a segment lie in the window that the published attention works on.

    The window has room for full segments of the requested area. Its empty places have keys and values of zero: they add
    nothing to the sum of values, but count in the denominator of the softmax.
    """

    tokens: int
    """Of a generated latent frame."""
    driving_tokens: int
    """Of a latent frame of the driving video."""
    empty: float = 0
    """Empty places with logit 0 that every query sees."""
    empty_first: float = 0
    """Those that lie in generated frame 1, with logit `log_scale`."""
    empty_driving: float = 0
    """Those in a frame of the driving video, for queries of generated frames from 1 on."""
    log_scale: float = 0
    """What is added to the logits of generated frame 1's keys."""

    @classmethod
    def published(
        cls, tokens: int, driving_tokens: int, slots: int, area: int, clip_len: int, log_scale: float
    ) -> "Window":
        """The published window: room for `clip_len` frames of `area` pixels.

        `slots` are the segment's generated latent frames, the picture's included.
        """
        frames, room = clip_len // 4 + 1, area // 256
        return cls(
            tokens,
            driving_tokens,
            empty=(frames + 1) * room - slots * tokens - (room - tokens),
            empty_first=room - tokens,
            empty_driving=room - driving_tokens,
            log_scale=log_scale,
        )


@dataclass(frozen=True)
class Pass:
    """What the blocks need to compute keys and values from their inputs: they are the same for all blocks."""

    rotary: Rotary
    modulation: Tensor
    """(1, 6, dim), at timestep 1."""


class Driving:
    """The keys and values (1, S, heads, d) of each block, of all driving tokens and this rank's heads.

    Args:
        where: they lie on the device or in host memory; or each block's input tokens (1, local, dim) do, from which the
            block computes keys and values again.
        eight_bits: keep keys and values in 8 bits, with a scale for each token and head. It has no effect on inputs.
        device: where they are used.
        blocks: how many.
    """

    def __init__(self, where: Where, eight_bits: bool, device: torch.device, blocks: int) -> None:
        self.where, self.eight_bits, self.device = where, eight_bits, device
        self.blocks = blocks
        self.tokens: SplitTokens | None = None
        """How ranks share the driving tokens; None: this rank has all of them."""
        self.window = Window(0, 0)
        self.reading = False
        """Whether the blocks run on the driving tokens."""
        self.steps: Pass | None = None
        self.order: Sequence[int] = range(blocks)
        """The blocks in the order in which they run. Host memory is read ahead in this order."""
        self._kept: list[tuple[Tensor, ...]] = [()] * blocks
        self._like: tuple[Tensor, ...] = ()
        """Tensors without data like those of each block, if they lie in host memory."""
        self._prefetcher: Prefetcher | None = None
        self._slot = 0

    @property
    def host_bytes(self) -> int:
        """Host memory that stays for the next segment and the next job."""
        return sum(buffer.nbytes for buffer in self._prefetcher.buffers) if self._prefetcher else 0

    @property
    def keeps_inputs(self) -> bool:
        return self.where in ("inputs", "host-inputs")

    def keep(self, block: int, *tensors: Tensor) -> None:
        """Keep a block's key and value, or its input."""
        parts = tensors if self.keeps_inputs or not self.eight_bits else (*_packed(tensors[0]), *_packed(tensors[1]))
        if self.where in ("device", "inputs"):
            self._kept[block] = parts
            return
        if block == 0:
            self._open_host(parts)
        assert self._prefetcher is not None
        self._prefetcher.store(block, parts)

    @contextmanager
    def of(self, block: int) -> Iterator[tuple[Tensor, ...]]:
        """A context in which a block's key and value, or its input, are on the device."""
        if self._prefetcher is None:
            yield self._unpacked(self._kept[block])
            return
        held = self._prefetcher.held
        self._slot = held.index(block) if block in held else 1 - self._slot
        self._prefetcher.fetch(block, self._slot)
        if (following := self._following(block)) != block:
            self._prefetcher.fetch(following, 1 - self._slot)
        with self._prefetcher.using(self._slot) as memory:
            yield self._unpacked(views(memory, self._like))

    def clear(self) -> None:
        """Give the device's memory back before the next segment. Host memory stays for it."""
        self._kept = [()] * len(self._kept)

    def _following(self, block: int) -> int:
        place = self.order.index(block) + 1 if block in self.order else 0
        return self.order[place % len(self.order)]

    def _open_host(self, parts: Sequence[Tensor]) -> None:
        """Prepare host memory for parts like these of each block."""
        size = sum(aligned(part.nbytes) for part in parts)
        self._like = tuple(torch.empty_like(part, device="meta") for part in parts)
        if self._prefetcher is None or self._prefetcher.buffers[0].nbytes < size:
            memory = [host_memory(size) for _ in self._kept]
            if self.device.type == "cuda":
                for one in memory:
                    pin(self, one)
            self._prefetcher = Prefetcher(memory, self.device)
        self._prefetcher.forget()

    def _unpacked(self, parts: Sequence[Tensor]) -> tuple[Tensor, ...]:
        if len(parts) < 4:
            return tuple(parts)
        key, key_scale, value, value_scale = parts
        return tuple((x.to(scale.dtype) * scale) for x, scale in ((key, key_scale), (value, value_scale)))


def _packed(x: Tensor) -> tuple[Tensor, Tensor]:
    """(1, S, heads, d) in 8 bits, and the scales (1, S, heads, 1)."""
    scale = (x.abs().amax(-1, keepdim=True).float() / LARGEST).clamp(min=1e-12)
    return (x / scale).to(EIGHT_BITS), scale.to(x.dtype)
