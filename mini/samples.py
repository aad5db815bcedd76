"""Draws training samples: the inputs of one segment as the engine would compute them, as latents."""

from dataclasses import replace
from functools import cache

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPVisionModel

from mini.codec import BLOCK, Codec
from mini.drawing import draw_frame, draw_place, silhouette
from mini.figures import Act, Build, Figure, Look, perform, stand, swing
from mini.scene import Scene
from wan_orchestration.engine.conditioning import encode_picture
from wan_orchestration.families.animate.background import background_known
from wan_orchestration.jobs.clips import FACE_SIZE

SIZE = (128, 128)
CLIP_LEN = 17
FACE_SIDE = 32
"""Side of the pictures at which training of the motion encoder starts. Its blocks before only shrink the picture."""
BRIGHT = 2.0
"""Added to a face's pixels, so that the first activation lets all of them pass."""

Sample = dict[str, Tensor]


def to_video(frames: list[np.ndarray]) -> Tensor:
    """(3, T, H, W) in [-1, 1] of frames (H, W, 3) uint8."""
    return torch.from_numpy(np.stack(frames)).permute(3, 0, 1, 2).float() / 127.5 - 1


def codec_videos(rng: np.random.Generator, count: int) -> list[tuple[Tensor, float]]:
    """Videos for `Codec.fit`: characters, and the pose clip of every other character."""
    videos = []
    for index in range(count):
        look, figure = Look.draw(rng), Figure(Build.draw(rng), perform(rng, CLIP_LEN))
        scene = Scene(figure, look, figure, look, SIZE)
        videos.append((to_video([scene.truth(t) for t in scene.frames]).transpose(0, 1), 1.0))
        if index % 2:
            videos.append((to_video([scene.pose(t) for t in scene.frames]).transpose(0, 1), 1.5))
    return videos


def decoder_batch(rng: np.random.Generator, figures: int, side: int) -> tuple[Tensor, Tensor]:
    """Crops of four frames (n, 4, 3, side, side) and of single frames (n, 1, ...), two of each for a figure."""
    fours, stills = [], []
    for _ in range(figures):
        look, figure = Look.draw(rng), Figure(Build.draw(rng), perform(rng, 5))
        place = draw_place(look, SIZE, horizon=rng.uniform(0.7, 0.9)) if rng.random() < 0.2 else None
        video = to_video([draw_frame(figure, look, t, SIZE, place) for t in range(5)]).transpose(0, 1)
        for _ in range(2):
            x, y = (BLOCK * rng.integers(0, (length - side) // BLOCK + 1) for length in SIZE)
            crop = video[:, :, y : y + side, x : x + side]
            stills.append(crop[:1])
            fours.append(crop[1:])
    return torch.stack(fours), torch.stack(stills)


def draw_motion(rng: np.random.Generator, codec: Codec, image_encoder: CLIPVisionModel) -> Sample:
    """One motion performed by two characters. The second sometimes stands in the driver's place (replace mode).

    Joins the result of `describe_motion` with the stacked results of `describe_character`.
    """
    build, driving = Build.draw(rng), perform(rng, CLIP_LEN)
    figure, driver = Figure(build, driving), Look.draw(rng)
    horizon = 0.8 + 0.12 * (swing(rng, CLIP_LEN, 0.5) - 0.5) if rng.random() < 0.5 else None
    characters = []
    for replaced in (False, rng.random() < 0.5):
        standing = Figure(replace(build, zoom=rng.uniform(0.97, 1.03)), stand(rng))
        scene = Scene(figure, driver, standing, Look.draw(rng), SIZE, horizon)
        characters.append(describe_character(codec, image_encoder, scene, replaced))
    stacked = {name: torch.stack([each[name] for each in characters]) for name in characters[0]}
    return describe_motion(codec, scene) | stacked


def describe_motion(codec: Codec, scene: Scene) -> Sample:
    """pose (16, n, h, w), face (T, 3, 32, 32), expression (T, 3), and figure (n, h, w): 1 where the driver is."""
    drawn = [silhouette(scene.driving, scene.driver, t, scene.size) for t in scene.frames[::4]]
    return {
        "pose": codec.encode(to_video([scene.pose(t) for t in scene.frames])),
        "face": torch.stack([shrink_face(scene.face(t)) for t in scene.frames]),
        "expression": expression(scene.driving.act),
        "figure": F.max_pool2d(torch.from_numpy(np.stack(drawn)).float()[:, None], BLOCK)[:, 0],
    }


def describe_character(codec: Codec, image_encoder: CLIPVisionModel, scene: Scene, replaced: bool) -> Sample:
    """video and background (16, n, h, w), reference (16, h, w), image (tokens, dim) and known (T, h, w).

    Without replace mode, background is that of a grey video and known is zero.
    """
    picture = to_video([scene.reference()])
    length, (width, height) = len(scene.frames), scene.size
    known, background = torch.zeros(length, height // BLOCK, width // BLOCK), torch.zeros(3, length, height, width)
    if replaced:
        masks = np.stack([scene.mask(t) for t in scene.frames])
        known = background_known(np.repeat(masks[..., None] * 255, 3, axis=3))
        background = to_video([scene.background(t) for t in scene.frames])
    return {
        "video": codec.encode(to_video([scene.truth(t, replaced) for t in scene.frames])),
        "reference": codec.encode(picture)[:, 0],
        "image": encode_picture(picture[None], image_encoder)[0],
        "background": codec.encode(background),
        "known": known,
    }


def expression(act: Act) -> Tensor:
    """(T, 3) about -1 to 1: mouth, eyes, smile."""
    return torch.from_numpy(np.stack([2 * act.mouth - 1, 2 * act.eyes - 1, act.smile], 1)).float()


def shrink_face(picture: np.ndarray) -> Tensor:
    """Output (3, 32, 32) of the motion encoder's first blocks for a face crop (h, w, 3) uint8.

    Equals enlarging the crop to 512x512, as preprocessing does, and running these blocks.
    """
    rows, columns = (torch.from_numpy(_shrinking(length)) for length in picture.shape[:2])
    pixels = 2**0.5 * (torch.from_numpy(picture).float() / 127.5 - 1 + BRIGHT)
    return torch.einsum("yh,hwc,xw->cyx", rows, pixels, columns)


@cache
def _shrinking(length: int) -> np.ndarray:
    """(32, length): a matrix that enlarges to 512 px, then halves with the motion encoder's blur down to 32 px."""
    matrix = cv2.resize(np.eye(length, dtype=np.float32), (length, FACE_SIZE), interpolation=cv2.INTER_LINEAR)
    while len(matrix) > FACE_SIDE:
        padded = np.pad(matrix, ((1, 1), (0, 0)))
        matrix = sum(tap / 8 * padded[start : len(padded) - 3 + start : 2] for start, tap in enumerate((1, 3, 3, 1)))
    return np.ascontiguousarray(matrix, np.float32)
