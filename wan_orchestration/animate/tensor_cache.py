"""Tensors that follow from a snapshot and a few values alone, kept in memory and on the disk for later launches."""

import hashlib
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from tempfile import NamedTemporaryFile

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from wan_orchestration.animate.parallel.ranks import Ranks

KEPT_IN_MEMORY = 16
_VERSIONS = f"{version('torch')} {version('transformers')}"


class TensorCache:
    """Results of the snapshot's own models: prompt embeddings, latents of an empty clip.

    Args:
        folder: of this snapshot's tensors; None to keep them in memory only. Safe to delete at any time.
        ranks: where there are several, they agree whether a tensor is there, because they compute it together.
        precision: how this launch computes, which is part of every key.
    """

    def __init__(self, folder: Path | None, ranks: Ranks, precision: str = "") -> None:
        self.folder, self.ranks, self.precision = folder, ranks, precision
        self._known: dict[str, Tensor] = {}

    def get(self, key: str, compute: Callable[[], Tensor]) -> Tensor:
        """The tensor of that key on the CPU; computed, and kept, where it is not there yet."""
        name = hashlib.sha256(f"{key} {self.precision} {_VERSIONS}".encode()).hexdigest()
        if name not in self._known:
            found = self._read(name)
            if self.ranks.sum(torch.tensor(int(found is not None))).item() < self.ranks.size or found is None:
                found = compute().cpu()
                self._write(name, found)
            self._known[name] = found
            if len(self._known) > KEPT_IN_MEMORY:
                del self._known[next(iter(self._known))]
        return self._known[name]

    def _read(self, name: str) -> Tensor | None:
        if self.folder is None:
            return None
        try:
            return load_file(self.folder / f"{name}.safetensors")["value"]
        except Exception:  # missing, cut off by a full disk, or not readable: computed again
            return None

    def _write(self, name: str, value: Tensor) -> None:
        if self.folder is None:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # A file of its own first: several launches and ranks may find out the same at once.
            with NamedTemporaryFile(dir=self.folder, suffix=".part", delete=False) as part:
                part.write(save({"value": value.contiguous()}))
            Path(part.name).replace(self.folder / f"{name}.safetensors")
        except OSError:
            return  # a disk that is full or read-only costs time, not the video
