"""Shared by the training stages: the folder of checkpoints and logs, the time budget, the average of weights."""

import csv
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mini.codec import Codec
from wan_orchestration.engine.models import Models
from wan_orchestration.files import replacing
from wan_orchestration.weights.snapshot import open_snapshot


class Work:
    """The folder that stores everything between runs."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.folder, self.device = folder, device
        self.base, self.cache = folder / "base", folder / "cache"

    def models(self) -> Models:
        """The models of the base, in float32."""
        return Models(open_snapshot(self.base), self.device, torch.float32)

    def codec(self) -> Codec:
        return Codec(**torch.load(self.folder / "codec.pt", weights_only=True))

    def load(self, name: str) -> dict[str, Any] | None:
        path = self.folder / f"{name}.pt"
        return torch.load(path, weights_only=True, map_location=self.device) if path.is_file() else None

    def save(self, name: str, state: dict[str, Any]) -> None:
        with replacing(self.folder / f"{name}.pt") as part:
            torch.save(state, part)

    def log(self, name: str, row: dict[str, float]) -> None:
        """Append a row to a CSV file and print it."""
        path = self.folder / f"{name}.csv"
        row = {key: round(value, 5) for key, value in row.items()}
        new = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.DictWriter(file, list(row))
            if new:
                writer.writeheader()
            writer.writerow(row)
        print(name, row, flush=True)


class Budget:
    """The time budget of a run. The learning rate is constant, then falls to zero over the last fifth."""

    def __init__(self, minutes: float) -> None:
        self.seconds, self.started = minutes * 60, time.monotonic()

    @property
    def minutes(self) -> float:
        return (time.monotonic() - self.started) / 60

    def rate(self, steps: int, warm: int) -> float:
        """Factor for the learning rate after `steps` of this run. It rises over the first `warm` steps."""
        left = 1 - (time.monotonic() - self.started) / self.seconds
        return max(min(1.0, (steps + 1) / warm, left / 0.2), 0.0)


class Average:
    """A moving average of a model's trained weights, which is validated and exported."""

    def __init__(self, model: nn.Module) -> None:
        self.weights = {name: value.detach().clone() for name, value in model.named_parameters()}
        self.steps = 0

    @torch.no_grad()
    def update(self, model: nn.Module, longest: float) -> None:
        self.steps += 1
        keep = min(longest, (1 + self.steps) / (10 + self.steps))
        for name, value in model.named_parameters():
            self.weights[name].lerp_(value, 1 - keep)

    @contextmanager
    def in_use(self, model: nn.Module) -> Iterator[None]:
        own = {name: value.detach().clone() for name, value in model.named_parameters()}
        model.load_state_dict(self.weights, strict=False)
        try:
            yield
        finally:
            model.load_state_dict(own, strict=False)
