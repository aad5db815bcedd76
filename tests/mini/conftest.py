"""A base, a codec and a trainee as training makes them, from a few drawn videos."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from mini import samples
from mini.base import write_base
from mini.codec import Codec
from mini.flow import Trainee
from wan_orchestration.engine.models import Models
from wan_orchestration.weights.snapshot import open_snapshot


@dataclass
class Start:
    base: Path
    codec: Codec

    def models(self) -> Models:
        return Models(open_snapshot(self.base), torch.device("cpu"), torch.float32)

    def trainee(self) -> Trainee:
        torch.manual_seed(0)
        return Trainee(self.models(), self.codec, samples.SIZE, samples.CLIP_LEN)


@pytest.fixture(scope="session")
def start(tmp_path_factory) -> Start:
    base = tmp_path_factory.mktemp("mini") / "base"
    write_base(base)
    return Start(base, Codec.fit(samples.codec_videos(np.random.default_rng(0), 4)))
