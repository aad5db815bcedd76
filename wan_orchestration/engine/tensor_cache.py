"""Caches tensors that depend only on a snapshot and a few values, in memory and on disk for later launches."""

import hashlib
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from tempfile import NamedTemporaryFile

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from wan_orchestration.engine.parallel.ranks import Ranks

KEPT_IN_MEMORY = 16
"""Most tensors that are kept in memory: those used last."""
_VERSIONS = f"{version('torch')} {version('transformers')}"


class TensorCache:
    """Results of the snapshot's models: prompt embeddings, and the latents of an empty segment.

    Args:
        folder: of this snapshot's tensors. None: in memory only. It may be deleted at any time.
        ranks: compute a tensor together, unless all of them have it.
        precision: how the models compute. It is part of every key.
    """

    def __init__(self, folder: Path | None, ranks: Ranks, precision: str = "") -> None:
        self.folder, self.ranks, self.precision = folder, ranks, precision
        self._known: dict[str, Tensor] = {}

    def get(self, key: str, compute: Callable[[], Tensor]) -> Tensor:
        """The tensor of a key, on the CPU. Computes and stores it if it is not in the cache."""
        name = hashlib.sha256(f"{key} {self.precision} {_VERSIONS}".encode()).hexdigest()
        if name not in self._known:
            found = self._read(name)
            if self.ranks.sum(torch.tensor(int(found is not None))).item() < self.ranks.size or found is None:
                found = compute().cpu()
                self._write(name, found)
        else:
            found = self._known.pop(name)
        self._known[name] = found
        if len(self._known) > KEPT_IN_MEMORY:
            del self._known[next(iter(self._known))]
        return found

    def forget(self) -> None:
        """Drop what is in memory. Ranks must do so together, because they look for the others' tensors together."""
        self._known.clear()

    def _read(self, name: str) -> Tensor | None:
        if self.folder is None:
            return None
        try:
            return load_file(self.folder / f"{name}.safetensors")["value"]
        except Exception:  # missing, cut short by a full disk, or unreadable: compute it again
            return None

    def _write(self, name: str, value: Tensor) -> None:
        if self.folder is None:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # To a temporary file first: several launches and ranks may write the same tensor at once.
            with NamedTemporaryFile(dir=self.folder, suffix=".part", delete=False) as part:
                part.write(save({"value": value.contiguous()}))
            Path(part.name).replace(self.folder / f"{name}.safetensors")
        except OSError:
            return  # on a full or read-only disk, later launches compute it again
