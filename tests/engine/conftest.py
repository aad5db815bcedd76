import json
from pathlib import Path

import pytest
import torch

from wan_orchestration.engine.models import Models
from wan_orchestration.weights.snapshot import open_snapshot


@pytest.fixture(scope="session")
def diffusers_snapshot():
    """Converts an open snapshot to the Diffusers layout by saving its models with their own classes."""

    def convert(source: Path, target: Path) -> Path:
        models = Models(open_snapshot(source), torch.device("cpu"), torch.bfloat16)
        models.transformer().save_pretrained(target / "transformer", max_shard_size="3MB")
        config = target / "transformer" / "config.json"
        content = json.loads(config.read_text()) | {"_class_name": "WanAnimateTransformer3DModel"}
        config.write_text(json.dumps(content))
        models.vae().save_pretrained(target / "vae")
        models.text_encoder().save_pretrained(target / "text_encoder")
        models.image_encoder().save_pretrained(target / "image_encoder")
        models.tokenizer().save_pretrained(target / "tokenizer")
        (target / "model_index.json").write_text(json.dumps({"_class_name": "WanAnimatePipeline"}))
        return target

    return convert
