"""Generates the video of one job segment by segment, with constant memory."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from wan_orchestration.engine import conditioning as cond
from wan_orchestration.engine.lora import Lora
from wan_orchestration.engine.memory.placement import SegmentShape
from wan_orchestration.engine.models import Models
from wan_orchestration.engine.parallel.tensors import gather
from wan_orchestration.engine.schedule import make_solver
from wan_orchestration.engine.transformer.attention import Keys, choose_backend
from wan_orchestration.engine.transformer.compilation import Compilation, compiling_pays, set_compile_cache
from wan_orchestration.engine.transformer.model import Branch
from wan_orchestration.engine.vae.model import STRIDE
from wan_orchestration.settings.generate import GenerateSettings

OnStep = Callable[[int], None]


@dataclass(frozen=True)
class Conditions:
    """Everything that the denoising steps of one segment have in common."""

    frames: int
    branches: Sequence[Branch]
    denoise: Callable[[Tensor, Tensor, Any], Tensor]
    """The flow of latents (1, 16, T_lat + 1, h, w) at a timestep (1,) in a branch."""


def parallel_branches(settings: GenerateSettings, ranks: int) -> int:
    """How many guidance branches this many ranks compute in parallel."""
    return 2 if settings.cfg_parallel and settings.guided and ranks % 2 == 0 else 1


def forwards_per_step(settings: GenerateSettings, ranks: int) -> int:
    """How often each rank runs the transformer in a denoising step."""
    return 2 if settings.guided and parallel_branches(settings, ranks) == 1 else 1


class Animator(ABC):
    """Generates the segments of one job. It holds the conditions that all of them share.

    Each family adds how a segment is conditioned.

    Args:
        models: the snapshot's models.
        settings: of the job.
        reference: the character, (h, w, 3) uint8 RGB, any size.
        height, width: of the video, multiples of 16.
        loras: to fuse into the transformer.
        segments: how many will be generated. It decides whether compiling pays.
        area: pixels of a frame that were asked for, if bars make the frames smaller.
    """

    needs_lse = False
    """Whether the attention kernel must return the log-sum-exp."""

    def __init__(
        self,
        models: Models,
        settings: GenerateSettings,
        reference: np.ndarray,
        height: int,
        width: int,
        loras: tuple[Lora, ...],
        segments: int = 1,
        area: int | None = None,
    ) -> None:
        self.models, self.settings, self.size = models, settings, (height, width)
        self.area = area or height * width
        self.stopwatch = models.stopwatch
        self.generator = torch.Generator("cpu").manual_seed(settings.seed)
        with self.stopwatch.during("encoding"):
            self.texts = self._encode_prompts()
            self.mesh = models.ranks.mesh(models.device, branches=2 if self.cfg_parallel else 1)
            self.transformer = models.transformer(loras)
            self.compilation = self._prepare_transformer(segments)
            self.vae = models.vae()
            picture = cond.to_tensor(cond.letterbox(reference, height, width)[None], models.device)
            features = self._encode_picture(picture)
            self.contexts = [self._embed(text, features) for text in self.texts[: 2 if settings.guided else 1]]
            with models.without_transformer():
                self.reference_latents = self.vae.encode_video(picture)

    @property
    def cfg_parallel(self) -> bool:
        """Whether half of the ranks compute one guidance branch and half the other."""
        return parallel_branches(self.settings, self.models.ranks.size) == 2

    def skip(self, segments: int) -> None:
        """Draw and discard the noise of segments that an earlier run made, so that the next one gets its own."""
        for _ in range(segments):
            self._draw_noise(self.settings.clip_len, self.generator)

    @abstractmethod
    def condition(self, segment: Any, guide: Tensor | None) -> Conditions:
        """Conditions of the next segment.

        Args:
            segment: its input frames, a `SegmentInput` of the family.
            guide: the last frames of the previous segment, (3, refert_num, H, W) in [-1, 1]; None for the first
                segment.
        """

    @torch.no_grad()
    def animate(self, conditions: Conditions, on_step: OnStep, seed: int | None = None) -> Tensor:
        """Generate a segment.

        Args:
            conditions: of the segment.
            on_step: called after each denoising step with the number of steps done.
            seed: of the noise, to make a segment again; None: the next part of the job's sequence of noise.

        Returns:
            (3, frames, H, W) float32 on the device, in [-1, 1]. The first refert_num frames of a later segment repeat
            the guide.
        """
        with self.stopwatch.during("denoising"):
            latents = self._denoise(conditions, on_step, seed)
            if not self.settings.retakes:
                self.forget_driving()
        with self.stopwatch.during("decoding"), self.models.without_transformer():
            return self.vae.decode_video(latents[:, :, 1:])

    def forget_driving(self) -> None:
        """Give memory back that only the denoising steps of the segment need."""
        return

    def _denoise(self, conditions: Conditions, on_step: OnStep, seed: int | None) -> Tensor:
        """Latents (1, 16, T_lat + 1, h, w), the reference slot first."""
        settings, device = self.settings, self.models.device
        generator = self.generator if seed is None else torch.Generator("cpu").manual_seed(seed)
        latents = self._draw_noise(conditions.frames, generator).to(device)
        solver = make_solver(settings.sample_solver, settings.sampling_steps, settings.shift)
        self.transformer.reset_step_cache()
        for done, timestep in enumerate(solver.timesteps, start=1):
            flow = self._predict_flow(latents, timestep[None].to(device), conditions)
            latents = solver.step(flow, timestep, latents, return_dict=False)[0]
            on_step(done)
        return latents

    def _predict_flow(self, latents: Tensor, timestep: Tensor, conditions: Conditions) -> Tensor:
        """Flow of one denoising step with classifier-free guidance, float32."""
        flows = self._flows(conditions.branches, partial(conditions.denoise, latents, timestep))
        flow = flows[0].float()
        if not self.settings.guided:
            return flow
        unconditional = flows[1].float()
        return unconditional + self.settings.guide_scale * (flow - unconditional)

    def _flows(self, branches: Sequence[Branch], denoise: Callable[[Branch], Tensor]) -> Sequence[Tensor]:
        """The flow of each branch."""
        if self.mesh is None or not self.cfg_parallel:
            return [denoise(branch) for branch in branches]
        own = denoise(branches[self.mesh.get_local_rank("branch")])
        return gather(own, [1, 1], 0, self.mesh.get_group("branch")).split(1)

    def _draw_noise(self, frames: int, generator: torch.Generator) -> Tensor:
        """Noise of one segment, (1, 16, T_lat + 1, h, w). Drawn on the CPU, so it is the same on every device."""
        slots = (frames - 1) // 4 + 2
        height, width = (side // STRIDE for side in self.size)
        return torch.randn(1, self.vae.config["z_dim"], slots, height, width, generator=generator)

    def _encode_prompts(self) -> list[Tensor]:
        """States (1, 512, text_dim) of `prompts`."""
        models, settings = self.models, self.settings
        with models.without_transformer():
            texts = [self._encode_prompt(prompt) for prompt in self.prompts]
            if settings.offload_model:
                models.free("text_encoder")
        return texts

    @property
    def prompts(self) -> list[str]:
        """The prompt and, with guidance, the negative prompt. Families append others."""
        settings = self.settings
        return [settings.prompt, settings.negative_prompt] if settings.guided else [settings.prompt]

    def _encode_prompt(self, prompt: str) -> Tensor:
        """(1, 512, text_dim). The text encoder is loaded only for a prompt that is not in the cache."""
        models, text = self.models, cond.clean_prompt(prompt)
        states = models.cache.get(
            f"prompt {models.weights_device.type} {models.dtype} {text}",
            lambda: cond.encode_prompt(text, models.tokenizer(), models.text_encoder()),
        )
        return cond.pad_prompt(states).to(models.device)

    def _prepare_transformer(self, segments: int) -> Compilation:
        """Choose the attention kernel and whether to compile, and set how ranks share the tokens."""
        models, settings, config = self.models, self.settings, self.transformer.config
        self.attention = choose_backend(
            settings.attention,
            models.device,
            models.dtype,
            config["num_attention_heads"],
            config["attention_head_dim"],
            self.needs_lse,
        )
        set_compile_cache(models.cache_root)
        return self.transformer.prepare(
            self.attention,
            self.mesh and self.mesh.get_group("sequence"),
            self._should_compile(segments),
            settings.step_cache,
            self.stopwatch,
        )

    def _should_compile(self, segments: int) -> bool:
        """As the settings say. "auto": on CUDA, if compiled blocks save more time than compiling takes."""
        settings, models, config = self.settings, self.models, self.transformer.config
        if settings.compile != "auto":
            return settings.compile == "on"
        if models.device.type != "cuda":
            return False
        branches = forwards_per_step(settings, models.ranks.size)
        degree = models.ranks.size // parallel_branches(settings, models.ranks.size)
        dim = config["num_attention_heads"] * config["attention_head_dim"]
        tokens = SegmentShape(*self.size, settings.clip_len).tokens // degree
        return compiling_pays(
            segments * settings.sampling_steps * branches,
            config["num_layers"],
            tokens * dim * models.dtype.itemsize,
            models.device,
            models.cache_root,
        )

    def _encode_picture(self, picture: Tensor) -> Tensor:
        """CLIP features (1, 257, image_dim). The encoder is on the device only while it works."""
        encoder = self.models.image_encoder()
        nn.Module.to(encoder, self.models.device)
        features = cond.encode_picture(picture, encoder).to(self.models.dtype)
        nn.Module.to(encoder, torch.device("cpu"))
        return features

    @torch.no_grad()
    def _embed(self, text: Tensor, features: Tensor) -> Tensor | list[Keys]:
        """The context of a guidance branch, see `Branch`."""
        context = self.transformer.embed_context(text.to(self.models.dtype), features)
        # Streamed blocks compute their keys at each step: storing all keys would cost the memory that streaming saves.
        return context if self.transformer.trunk.streamed else self.transformer.cross_keys(context)

    def _with_picture(self, known: Tensor, latents: Tensor) -> Tensor:
        """Mask and latents of the known pixels, (1, 20, T_lat + 1, h, w), the reference picture in the first slot.

        Args:
            known: shares of known pixels (T, h, w).
            latents: (1, 16, T_lat, h, w) of the known frames.
        """
        latents = torch.cat([self.reference_latents, latents], dim=2)
        mask = cond.known_pixels(known).to(latents)
        mask = torch.cat([torch.ones_like(mask[:, :, :1]), mask], dim=2)
        return torch.cat([mask, latents], dim=1)

    def _encode_blank(self, video: Tensor, guide: Tensor | None) -> Tensor:
        """Latents of a video that is zero after the guide. Without a guide they come from the cache."""
        if guide is not None:
            return self.vae.encode_video(video, still_from=guide.shape[1])
        shape = "x".join(map(str, video.shape[2:]))
        latents = self.models.cache.get(
            f"blank {self.models.device.type} {self.vae.dtype} {self.vae.tiled} {shape}",
            lambda: self.vae.encode_video(video, still_from=0),
        )
        return latents.to(self.models.device)
