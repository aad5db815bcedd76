"""Flow matching of the transformer on cached samples, with the same inputs as in the engine."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.transformers.transformer_wan_animate import WanAnimateMotionEncoder
from torch import Tensor, nn

from mini.codec import LATENTS, Codec
from mini.samples import BRIGHT, FACE_SIDE, Sample
from wan_orchestration.engine.conditioning import TEXT_TOKENS, encode_prompt, known_pixels, pad_prompt
from wan_orchestration.engine.models import Models
from wan_orchestration.families.animate.transformer import AnimateTransformer, FaceBranch
from wan_orchestration.settings.generate import NEGATIVE_PROMPT, PROMPT

SHIFT = 5.0
GUIDES = ((0, 0.5), (1, 0.35), (5, 0.15))
"""Number of guiding frames, from the segment before, and how often it is used."""


class SelfAttention:
    """The engine's self-attention as plain matrix products, which a CPU computes faster in bfloat16."""

    @staticmethod
    def project(attn: Any, x: Tensor, rotary: Any) -> tuple[Tensor, Tensor, Tensor]:
        query, key = (
            _rotate(_heads(_normed(norm, linear(x)), attn.heads), *rotary)
            for norm, linear in ((attn.norm_q, attn.to_q), (attn.norm_k, attn.to_k))
        )
        return query, key, _heads(attn.to_v(x), attn.heads)

    @staticmethod
    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return _attend(query, key, value)


class CrossAttention:
    """Cross-attention in which one text token replaces the many equal padding tokens after the prompt.

    N equal keys weigh the same as one key with log N added to its logit, so the 512 text tokens shrink to a few.
    """

    def __init__(self, image: int) -> None:
        self.image, self.padding = image, 0
        """Number of image tokens, and of the equal text tokens that the last text token replaces."""

    def __call__(
        self, attn: Any, x: Tensor, context: Tensor, attention_mask: None = None, rotary_emb: None = None
    ) -> Tensor:
        image, text = context[:, : self.image], context[:, self.image :]
        query = _heads(_normed(attn.norm_q, attn.to_q(x)), attn.heads)
        bias = torch.zeros(text.shape[1], device=query.device)
        bias[-1] = math.log(self.padding)
        key = _heads(_normed(attn.norm_k, attn.to_k(text)), attn.heads)
        value = _heads(attn.to_v(text), attn.heads)
        out = _attend(query, key, value, bias)
        key, value = _normed(attn.norm_added_k, attn.add_k_proj(image)), attn.add_v_proj(image)
        return attn.to_out[0](out + _attend(query, _heads(key, attn.heads), _heads(value, attn.heads)))


def _normed(norm: nn.RMSNorm, x: Tensor) -> Tensor:
    """The norm with its weights in x's dtype, to which autocast does not convert them."""
    weight = norm.weight
    assert weight is not None
    return F.rms_norm(x, norm.normalized_shape, weight.to(x.dtype), norm.eps)


def _heads(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


def _attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    scores = query @ key.transpose(2, 3) * query.shape[-1] ** -0.5 + bias
    return (scores.softmax(-1).to(value.dtype) @ value).transpose(1, 2).flatten(2)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    one, two = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos.transpose(1, 2).to(x.dtype), sin.transpose(1, 2).to(x.dtype)
    return torch.stack([one * cos - two * sin, one * sin + two * cos], -1).flatten(-2)


class Trainee(nn.Module):
    """The transformer, with the parts that only training uses."""

    def __init__(self, models: Models, codec: Codec, size: tuple[int, int], clip_len: int) -> None:
        super().__init__()
        self.transformer = models.transformer().requires_grad_(True)
        self.expression = nn.Linear(self.transformer.config["motion_encoder_dim"], 3).to(models.device)
        """Predicts the expression from the motion vectors, so that they learn to contain it."""
        prepare(self.transformer)
        self.rope = self.transformer.rope = Rope(self.transformer.rope)
        self.pose: Tensor | None = None
        self.transformer.patch_embedding.register_forward_hook(self._add_pose)
        self.texts = [_shorten(pad_prompt(encode_prompt(text, models.tokenizer(), models.text_encoder())))
                      for text in (PROMPT, NEGATIVE_PROMPT)]  # fmt: skip
        config: Any = models.image_encoder().config
        self.attention = CrossAttention((config.image_size // config.patch_size) ** 2 + 1)
        for block in self.transformer.blocks:
            block.attn1.set_processor(SelfAttention())
            block.attn2.set_processor(self.attention)
        grey = codec.encode(torch.zeros(3, clip_len, size[1], size[0]))
        self.blank = grey[None].to(models.device)
        # The share of the picture's contrast in each latent channel.
        share = torch.linalg.pinv(codec.weight).norm(dim=0)
        self.weights = (share / share.mean()).view(1, LATENTS, 1, 1, 1).to(models.device)

    def _add_pose(self, layer: nn.Module, inputs: tuple[Tensor], patches: Tensor) -> Tensor | None:
        pose, self.pose = self.pose, None
        return None if pose is None else patches + pose

    def loss(
        self,
        sample: Sample,
        sigma: Tensor,
        noise: Tensor,
        guides: int,
        dropped: bool,
        only: int | None = None,
        wear: float = 0.2,
    ) -> dict[str, Tensor]:
        """Losses of a batch of samples, all with the same number of guiding frames.

        sigma (B,), noise (B, 16, n + 1, h, w). Guiding frames get up to `wear` of noise, because in the engine they are
        generated, decoded and encoded again. `dropped` trains the unconditional branch of guidance. `only` trains a
        single latent frame, at its position in the segment but without the other frames and the reference slot. Pose,
        face and image tokens determine nearly all of it, so this is the cheapest way to train on many frames.
        """
        video, reference = sample["video"], sample["reference"][:, :, None]
        background, known, face = sample["background"], sample["known"].clone(), sample["face"]
        background = torch.where(known.amax((1, 2, 3)).view(-1, 1, 1, 1, 1) > 0, background, self.blank)
        level = sigma.view(-1, 1, 1, 1, 1)
        if guides:
            known[:, :guides] = 1
            held = (guides + 6) // 4
            worn = video[:, :, :held] + wear * torch.rand_like(level) * torch.randn_like(video[:, :, :held])
            background = torch.cat([worn, background[:, :, held:]], dim=2)
        mask = torch.cat([known_pixels(each) for each in known])
        pose, figure, expression = sample["pose"], sample["figure"], sample["expression"]
        places = slice(None)
        if only is not None:
            places = slice(only, only + 1)
            frames = (4 * only + torch.arange(-4, 1)).clamp_min(0)
            face, expression = face[:, frames], expression[:, frames]
        video, background, mask, pose = (each[:, :, places] for each in (video, background, mask, pose))
        figure = figure[:, None, places]
        self.rope.only = only
        # The transformer caches them by the size of the latents, which does not tell the position of a single frame.
        self.transformer._tables = None

        slots = 1 if only is None else 0
        reference = reference[:, :, :slots]
        clean = torch.cat([reference, video], dim=2)
        noisy = (1 - level) * clean + level * noise
        mask = torch.cat([torch.ones_like(mask[:, :, :slots]), mask], dim=2)
        y = torch.cat([mask, torch.cat([reference, background], dim=2)], dim=1)
        if dropped:
            face = torch.full_like(face, 2**0.5 * (BRIGHT - 1))
        text, self.attention.padding = self.texts[dropped]
        context = self.transformer.embed_context(text.expand(len(video), -1, -1), sample["image"])
        vectors = motion_vectors(self.transformer.motion_encoder, face)
        motion = self.transformer.face_encoder(vectors)[:, -video.shape[2] :]
        motion = torch.cat([torch.zeros_like(motion[:, :slots]), motion], dim=1)
        embedded = self.transformer.embed_pose(pose)
        if not slots:
            # `denoise` adds the pose after the reference slot, which does not exist here.
            self.pose, embedded = embedded, embedded[:, :, :0]
        flow = self.transformer.denoise(noisy, sigma * 1000, y, embedded, FaceBranch(context, motion=motion)).float()

        error = (flow - (noise - clean)).square() * self.weights
        first, error = error[:, :, :slots], error[:, :, slots:]
        main = (error * (1 + 3 * figure)).mean() + (0.1 * first.mean() if slots else 0.0)
        return {
            "loss": main,
            "figure": (error * figure).sum() / figure.sum() / LATENTS,
            "place": (error * (1 - figure)).sum() / (1 - figure).sum() / LATENTS,
            "face": (self.expression(vectors.float()) - expression).square().mean() * (not dropped),
        }


class Rope(nn.Module):
    """The transformer's rotary tables, for all frames or for a single one."""

    def __init__(self, rope: nn.Module) -> None:
        super().__init__()
        self.rope, self.only = rope, None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.only is None:
            return self.rope(x)
        slots = self.only + 2
        cos, sin = self.rope(x[:, :, :1].expand(-1, -1, slots, -1, -1))
        return cos.chunk(slots, dim=1)[-1], sin.chunk(slots, dim=1)[-1]


def motion_vectors(encoder: WanAnimateMotionEncoder, faces: Tensor) -> Tensor:
    """(B, T, motion dim) of the output (B, T, 3, 32, 32) of the encoder's first blocks. Runs the other blocks."""
    x = faces.flatten(0, 1)
    for block in encoder.res_blocks[-_trained_blocks() :]:
        x = block(x)
    x = encoder.conv_out(x).flatten(1)
    for linear in encoder.motion_network:
        x = linear(x)
    basis = torch.linalg.qr(encoder.motion_synthesis_weight.float() + 1e-8)[0]
    return (x.float() @ basis.T).unflatten(0, faces.shape[:2])


@torch.no_grad()
def prepare(transformer: AnimateTransformer) -> None:
    """Set initial weights: a motion encoder that shrinks the picture, noise passed to the output, small branches."""
    encoder = transformer.motion_encoder
    shrinking = encoder.res_blocks[: -_trained_blocks()]
    for module in (encoder.conv_in, *shrinking):
        for weight in module.parameters():
            weight.requires_grad_(False).zero_()
    encoder.conv_in.weight[:, :, 0, 0] = torch.eye(3) / encoder.conv_in.scale
    encoder.conv_in.act_fn.bias.fill_(BRIGHT)
    for block in shrinking:
        block.conv_skip.weight[:, :, 0, 0] = torch.eye(3) * 2**0.5 / block.conv_skip.scale

    # The noise of a patch gets its own dimensions, which the head reads, because the flow is mostly noise.
    patch, noise = transformer.patch_embedding, 4 * LATENTS
    own = torch.eye(noise).view(noise, 2, 2, LATENTS).permute(0, 3, 1, 2)
    patch.weight[noise:, :LATENTS] = 0
    patch.weight[:noise] = 0
    patch.weight[:noise, :LATENTS, 0] = own
    patch.weight[noise:] *= 1.5
    patch.bias.zero_()
    transformer.pose_patch_embedding.weight[:noise] = 0
    transformer.proj_out.weight.zero_()
    transformer.proj_out.weight[:, :noise] = torch.eye(noise)
    transformer.proj_out.bias.zero_()
    transformer.scale_shift_table.zero_()
    transformer.condition_embedder.time_proj.weight *= 0.1
    for block in transformer.blocks:
        block.scale_shift_table.zero_()
        block.scale_shift_table[:, (2, 5)] = 0.5
        block.attn2.to_out[0].weight *= 0.2
    for adapter in transformer.face_adapter:
        adapter.to_out.weight *= 0.2


def _trained_blocks() -> int:
    """The number of blocks from 32x32 to 4x4 px."""
    return int(math.log2(FACE_SIDE)) - 2


def _shorten(text: Tensor) -> tuple[Tensor, int]:
    """Text states up to the first padding token, from (1, 512, dim), and the number of padding tokens."""
    valid = int(text[0].abs().amax(1).gt(0).sum())
    return text[:, : valid + 1], TEXT_TOKENS - valid


def levels(count: int, device: torch.device) -> Tensor:
    """(count,) noise levels, spread over the sampler's schedule."""
    even = (torch.arange(count, device=device) + torch.rand(count, device=device)) / count
    return SHIFT * even / (1 + (SHIFT - 1) * even)
