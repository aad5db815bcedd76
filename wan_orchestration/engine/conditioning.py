"""What a segment is conditioned on: prompt, reference picture, known pixels. Tensors are channels first, RGB."""

import html
import re

import cv2
import ftfy
import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from transformers import CLIPVisionModel, PreTrainedTokenizerBase, UMT5EncoderModel

TEXT_TOKENS = 512
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def to_tensor(frames: np.ndarray, device: torch.device | None = None) -> Tensor:
    """(1, 3, T, H, W) float32 in [-1, 1] of frames (T, H, W, 3) uint8, on the device, channels last in memory."""
    return torch.from_numpy(frames).to(device).permute(3, 0, 1, 2)[None].float().div_(127.5).sub_(1)


def to_frames(video: Tensor) -> np.ndarray:
    """Frames (T, H, W, 3) uint8 of a video (3, T, H, W) in [-1, 1]. Other values are clipped; NaN becomes grey.

    Converts on the video's device and copies to the host once.
    """
    levels = video.nan_to_num().clamp_(-1, 1).add_(1).mul_(127.5).round_().to(torch.uint8)
    levels = rearrange(levels, "c t h w -> t h w c").contiguous()
    if levels.device.type == "cpu":
        return levels.numpy()
    return torch.empty(levels.shape, dtype=torch.uint8, pin_memory=True).copy_(levels).numpy()


def letterbox(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """Fit a picture (h, w, 3) uint8 into (height, width, 3) with black bars.

    As in the published code, sizes and offsets are truncated and the interpolation is bilinear.
    """
    h, w = picture.shape[:2]
    if h / w > height / width:
        size = (max(1, int(height / h * w)), height)
    else:
        size = (width, max(1, int(width / w * h)))
    scaled = cv2.resize(picture, size, interpolation=cv2.INTER_LINEAR)
    left, top = int((width - size[0]) / 2), int((height - size[1]) / 2)
    canvas = np.zeros((height, width, 3), np.uint8)
    canvas[top : top + size[1], left : left + size[0]] = scaled
    return canvas


def clean_prompt(text: str) -> str:
    """Clean a prompt as in the model's training: fix its Unicode, unescape HTML, collapse whitespace."""
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return re.sub(r"\s+", " ", text).strip()


@torch.no_grad()
def encode_prompt(text: str, tokenizer: PreTrainedTokenizerBase, encoder: UMT5EncoderModel) -> Tensor:
    """umT5 states (1, n, text_dim) of a clean prompt's n tokens, at most 512."""
    tokens = tokenizer(text, truncation=True, max_length=TEXT_TOKENS, return_tensors="pt").to(encoder.device)
    return encoder(**tokens).last_hidden_state


def pad_prompt(states: Tensor) -> Tensor:
    """States padded with zeros to (1, 512, text_dim). The model attends to all of them, without a mask."""
    return F.pad(states, (0, 0, 0, TEXT_TOKENS - states.shape[1]))


@torch.no_grad()
def encode_picture(picture: Tensor, encoder: CLIPVisionModel) -> Tensor:
    """CLIP features (1, 257, image_dim) of a picture (1, 3, 1, H, W) in [-1, 1].

    As in the published code, the picture is stretched to the encoder's square input size without antialiasing, and the
    features come from the last but one layer.
    """
    size = encoder.config.image_size
    assert isinstance(size, int)
    picture = F.interpolate(picture[:, :, 0].float(), size=(size, size), mode="bicubic", align_corners=False)
    mean = picture.new_tensor(CLIP_MEAN).view(3, 1, 1)
    std = picture.new_tensor(CLIP_STD).view(3, 1, 1)
    picture = ((picture * 0.5 + 0.5) - mean) / std
    return encoder(picture, output_hidden_states=True).hidden_states[-2]


def known_pixels(mask: Tensor) -> Tensor:
    """The model's mask channels (1, 4, T_lat, h, w) of the shares of known pixels (T, h, w).

    A latent frame has one channel for each of its four frames. The first latent frame repeats the first frame.
    """
    groups = torch.cat([mask[:1].expand(4, -1, -1), mask[1:]])
    return rearrange(groups, "(t four) h w -> 1 four t h w", four=4)
