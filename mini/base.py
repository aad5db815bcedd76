"""The snapshot that training starts from: random weights, and a fixed picture tower that shows a thumbnail.

The tower's patches hold the mean colours of 8x8 px cells of a 128x128 reference, and their position as a one-hot code.
A constant keeps the layer norms from mixing these values. So the image tokens are a thumbnail of the reference, cut
into 16 patches. The text encoder stays random.
"""

from pathlib import Path

import torch

from benchmarks import random_snapshot
from benchmarks.random_snapshot import Widths
from wan_orchestration.engine.layouts.weight_files import read_pickle
from wan_orchestration.families.animate.family import IMAGE_ENCODER, RELIGHTING_LORA
from wan_orchestration.files import replacing

WIDTHS = Widths(
    dim=192, heads=4, layers=5, ffn=512, freq=64, text=32, motion=64, face_hidden=64, face_heads=2,
    motion_channels=(3, 3, 3, 3, 3, 24, 48, 64), vae=16, text_layers=1, text_heads=2,
    clip=80, clip_layers=1, clip_patch=56, clip_side=4,
)  # fmt: skip
CELLS = 4
"""Cells along each side of a patch."""
STEADY = 40.0
"""The constant, large beside the other values."""


def write_base(folder: Path) -> None:
    random_snapshot.write(folder, WIDTHS, shards=1)
    (folder / RELIGHTING_LORA).unlink()
    tower = {name: tensor.clone() for name, tensor in read_pickle(folder / IMAGE_ENCODER).items()}
    patch, patches, colours = WIDTHS.clip_patch, WIDTHS.clip_side**2, 3 * CELLS**2
    cell = patch // CELLS
    embedding, positions = tower["visual.patch_embedding.weight"].zero_(), tower["visual.pos_embedding"].zero_()
    for index in range(CELLS**2):
        y, x = (cell * step for step in divmod(index, CELLS))
        for channel in range(3):
            embedding[3 * index + channel, channel, y : y + cell, x : x + cell] = 1 / cell**2
    positions[0, 1:, colours : colours + patches] = 2 * torch.eye(patches)
    positions[0, :, -1] = STEADY
    tower["visual.cls_embedding"].zero_()
    # The layer norm divides by about STEADY / sqrt(80). Undo that, and make the constant smaller.
    gain = tower["visual.pre_norm.weight"]
    gain[:] = STEADY / WIDTHS.clip**0.5
    gain[-1] *= 0.3
    tower["visual.pre_norm.bias"].zero_()
    with replacing(folder / IMAGE_ENCODER) as part:
        torch.save(tower, part)
