"""Fuses LoRAs into a transformer, and replaces them by others without loading the whole transformer again."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from wan_orchestration.engine.layouts.fill import Loaded, refill
from wan_orchestration.engine.lora import Changes, Lora, add, changes_of
from wan_orchestration.engine.transformer.model import WanTransformer


@dataclass(frozen=True)
class WantedLoras:
    """LoRAs that have been read and fit the transformer."""

    versions: tuple[Any, ...]
    changes: list[Changes]
    device: torch.device
    """Where sums are computed: another device may round differently."""


class FusedLoras:
    """The LoRAs in a transformer's weights.

    Before others are fused, the weights that these LoRAs changed are read from the snapshot again. All weights then
    equal those of a fresh load, bit for bit.

    Args:
        transformer: with the snapshot's weights.
        base: reads the tensors of the snapshot that hold the weights of these names, and no others.
    """

    def __init__(self, transformer: WanTransformer, base: Callable[[set[str]], Iterable[Loaded]]) -> None:
        self.transformer, self.base = transformer, base
        self.left_out: list[str] = []
        """Messages about LoRA tensors that do not fit the transformer."""
        self._versions: tuple[Any, ...] = ()
        self._changed: set[str] = set()
        """Names of the weights that differ from the snapshot's."""

    def are(self, loras: tuple[Lora, ...], device: torch.device) -> bool:
        """Whether these LoRAs are fused, their sums computed on this device, and their files have not changed since."""
        return self._versions == _versions(loras, device)

    def read(self, loras: tuple[Lora, ...], device: torch.device) -> WantedLoras:
        """Read LoRAs, for `replace`.

        Raises:
            BadInput: a LoRA cannot be used.
        """
        versions = _versions(loras, device)  # before the files are read, so that a later change is noticed
        return WantedLoras(versions, [changes_of(self.transformer, item) for item in loras], device)

    def replace(self, wanted: WantedLoras) -> None:
        """Fuse these LoRAs instead of the present ones. After an error the weights are undefined.

        Raises:
            BadInput: the snapshot's files have changed.
        """
        if self._changed:
            refill(self.transformer, self.base(self._changed), self._changed)
        self._changed = {name for changes in wanted.changes for name in changes.weights}
        for changes in wanted.changes:
            add(self.transformer, changes, wanted.device)
        self._versions = wanted.versions
        self.left_out = [changes.left_out for changes in wanted.changes if changes.left_out]


def _versions(loras: tuple[Lora, ...], device: torch.device) -> tuple[Any, ...]:
    return tuple((device, *lora.version()) for lora in loras)
