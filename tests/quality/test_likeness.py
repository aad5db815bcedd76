"""Identity by the mini weights' CLIP, which knows colours: right figures pass the check, others are less alike."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch

from mini.scene import scene
from wan_orchestration.defs.videos.checks import judge
from wan_orchestration.engine.models import Models
from wan_orchestration.protocol.messages import Quality, Result
from wan_orchestration.quality.likeness import likeness
from wan_orchestration.settings.checks import CheckSettings
from wan_orchestration.weights.snapshot import open_snapshot

WEIGHTS = Path(__file__).parents[2] / "data" / "models" / "wan-animate-mini"


@pytest.mark.parametrize("seed", range(3))
def test_the_right_character_and_others(seed):
    models = Models(open_snapshot(WEIGHTS), torch.device("cpu"), torch.float32)
    one, other = scene(seed=seed, frames=5), scene(seed=seed + 10, frames=5)
    right, wrong = ([each.truth(t) for t in each.frames] for each in (one, other))
    negative = [255 - frame for frame in right]

    def identity(frames) -> float:
        return likeness(models.image_encoder(), models.device, frames, one.reference())

    assert identity(right) > identity(wrong) > identity(negative)
    assert passes(identity(right)) and not passes(identity(negative))


def passes(identity: float) -> bool:
    quality = Quality(frozen_frames=0, colour_drift=[0.0], seam=0.0, identity=identity)
    result = Result(job_id="job", status="succeeded", created_at=datetime.now(UTC), fps=30, quality=quality)
    return judge(result, CheckSettings())["identity"].passed
