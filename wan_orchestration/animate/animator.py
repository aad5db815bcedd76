"""Animates one job, clip by clip, with constant memory."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from wan_orchestration.animate import conditioning as cond
from wan_orchestration.animate.lora import Lora
from wan_orchestration.animate.memory.placement import ClipShape
from wan_orchestration.animate.models import Models
from wan_orchestration.animate.parallel.ranks import gather
from wan_orchestration.animate.schedule import make_solver
from wan_orchestration.animate.transformer.attention import Keys, choose_backend
from wan_orchestration.animate.transformer.compilation import keep_compiled, pays
from wan_orchestration.animate.transformer.model import Branch
from wan_orchestration.settings.generate import GenerateSettings

OnStep = Callable[[int], None]


@dataclass(frozen=True)
class ClipInput:
    """Frames of one clip, (clip_len, H, W, 3) uint8 RGB, the face 512x512. Background and mask: replace mode only."""

    pose: np.ndarray
    face: np.ndarray
    background: np.ndarray | None = None
    mask: np.ndarray | None = None


@dataclass(frozen=True)
class Conditions:
    """What the steps of one clip share."""

    frames: int
    known: Tensor
    """Mask and latents of what is known, (1, 20, T_lat + 1, h, w)."""
    pose: Tensor
    """From `embed_pose`."""
    branches: list[Branch]


class Animator:
    """Conditions that hold for a whole job, and the loop that makes its clips.

    Args:
        models: the snapshot's models.
        settings: of the job.
        reference: the character, (h, w, 3) uint8 RGB, any size.
        height, width: of the video, multiples of 16.
        loras: to fuse into the transformer.
        clips: how many are to be made.
    """

    def __init__(
        self,
        models: Models,
        settings: GenerateSettings,
        reference: np.ndarray,
        height: int,
        width: int,
        loras: tuple[Lora, ...],
        clips: int = 1,
    ) -> None:
        self.models, self.settings, self.size = models, settings, (height, width)
        self.stopwatch = models.stopwatch
        with self.stopwatch.during("encoding"):
            self._begin(reference, loras, clips)

    def _begin(self, reference: np.ndarray, loras: tuple[Lora, ...], clips: int) -> None:
        models, settings, size = self.models, self.settings, self.size
        prompts = [settings.prompt, settings.negative_prompt] if self.guided else [settings.prompt]
        with models.without_transformer():
            texts = [self._encode_prompt(prompt) for prompt in prompts]
            if settings.offload_model:
                models.free("text_encoder")
        self.mesh = models.ranks.mesh(models.device, branches=2 if self.side_by_side else 1)
        self.transformer = models.transformer(loras)
        self.attention = choose_backend(
            settings.attention,
            models.device,
            models.dtype,
            self.transformer.config["num_attention_heads"],
            self.transformer.config["attention_head_dim"],
        )
        keep_compiled(models.cache_root)
        self.compilation = self.transformer.prepare(
            self.attention,
            self.mesh and self.mesh.get_group("sequence"),
            self._shall_compile(clips),
            settings.step_cache,
            self.stopwatch,
        )
        self.vae = models.vae()
        letterboxed = cond.letterbox(reference, *size)
        picture = cond.to_tensor(letterboxed[None], models.device)
        image_encoder = models.image_encoder()
        nn.Module.to(image_encoder, models.device)
        features = cond.encode_reference(picture, image_encoder).to(models.dtype)
        nn.Module.to(image_encoder, torch.device("cpu"))
        self.contexts = [self._embed(text, features) for text in texts]
        with models.without_transformer():
            self.reference_latents = self.vae.encode_video(picture)
        self.generator = torch.Generator("cpu").manual_seed(settings.seed)
        self.unconditional_motion: Tensor | None = None

    @property
    def guided(self) -> bool:
        return self.settings.guide_scale > 1

    @property
    def side_by_side(self) -> bool:
        """Whether half of the ranks work on one guidance branch and half on the other."""
        return self.settings.cfg_parallel and self.guided and self.models.ranks.size % 2 == 0

    def _shall_compile(self, clips: int) -> bool:
        """As the settings say; auto: on CUDA, where so many clips' steps gain more than the compiling takes."""
        settings, models, config = self.settings, self.models, self.transformer.config
        if settings.compile != "auto":
            return settings.compile == "on"
        if models.device.type != "cuda":
            return False
        branches = 2 if self.guided and not self.side_by_side else 1
        sharing = models.ranks.size // (2 if self.side_by_side else 1)
        dim = config["num_attention_heads"] * config["attention_head_dim"]
        tokens = ClipShape(*self.size, settings.clip_len).tokens // sharing
        return pays(
            clips * settings.sampling_steps * branches,
            config["num_layers"],
            tokens * dim * models.dtype.itemsize,
            models.device,
            models.cache_root,
        )

    def skip(self, clips: int) -> None:
        """Draw the noise of clips that an earlier run has made, so that the next gets its own."""
        for _ in range(clips):
            self._draw_noise(self.settings.clip_len)

    @torch.no_grad()
    def condition(self, clip: ClipInput, guide: Tensor | None) -> Conditions:
        """What the next clip is conditioned on, from its input frames.

        `guide`, (3, refert_num, H, W) in [-1, 1], are the last decoded frames of the clip before; None for the first.
        """
        with self.stopwatch.during("encoding"):
            with self.models.without_transformer():
                known = self._known(clip, guide)
                pose_latents = self._encode(clip.pose)
            pose = self.transformer.embed_pose(pose_latents.to(self.models.dtype))
            return Conditions(len(clip.pose), known, pose, self._branches(clip))

    @torch.no_grad()
    def animate(self, conditions: Conditions, on_step: OnStep) -> Tensor:
        """Make the clip whose conditions were found last.

        Args:
            conditions: of the clip.
            on_step: called after each step with the number of steps done.

        Returns:
            (3, frames, H, W) float32 on the device, in [-1, 1]. The first refert_num frames of a later clip repeat
            the guide.
        """
        with self.stopwatch.during("denoising"):
            latents = self._denoise(conditions, on_step)
        with self.stopwatch.during("decoding"), self.models.without_transformer():
            return self.vae.decode_video(latents[:, :, 1:])

    def _denoise(self, conditions: Conditions, on_step: OnStep) -> Tensor:
        """Latents, the reference slot first."""
        y, pose, branches = conditions.known, conditions.pose, conditions.branches
        latents = self._draw_noise(conditions.frames).to(self.models.device)
        self.transformer.forget_steps()
        solver = make_solver(self.settings.sample_solver, self.settings.sampling_steps, self.settings.shift)
        for done, timestep in enumerate(solver.timesteps, start=1):
            at = timestep[None].to(self.models.device)
            flows = self._flows(branches, partial(self.transformer.denoise, latents, at, y, pose))
            flow = flows[0].float()
            if self.guided:
                away = flows[1].float()
                flow = away + self.settings.guide_scale * (flow - away)
            latents = solver.step(flow, timestep, latents, return_dict=False)[0]
            on_step(done)
        return latents

    def _flows(self, branches: list[Branch], denoise: Callable[[Branch], Tensor]) -> Sequence[Tensor]:
        if self.mesh is None or not self.side_by_side:
            return [denoise(branch) for branch in branches]
        own = denoise(branches[self.mesh.get_local_rank("branch")])
        return gather(own, [1, 1], 0, self.mesh.get_group("branch")).split(1)

    def _encode_prompt(self, prompt: str) -> Tensor:
        """(1, 512, text_dim); the text encoder is loaded only for a prompt that no launch has seen before."""
        models, text = self.models, cond.clean_prompt(prompt)
        states = models.cache.get(
            f"prompt {models.weights_device.type} {models.dtype} {text}",
            lambda: cond.encode_prompt(text, models.tokenizer(), models.text_encoder()),
        )
        return cond.pad_prompt(states).to(models.device)

    @torch.no_grad()
    def _embed(self, text: Tensor, features: Tensor) -> Tensor | list[Keys]:
        context = self.transformer.embed_context(text.to(self.models.dtype), features)
        # Streamed blocks compute their keys at each step: to keep them all would cost what streaming is to save.
        return context if self.transformer.trunk.streamed else self.transformer.cross_keys(context)

    def _encode(self, frames: np.ndarray) -> Tensor:
        return self.vae.encode_video(cond.to_tensor(frames, self.models.device))

    def _branches(self, clip: ClipInput) -> list[Branch]:
        motion = self.transformer.encode_face(clip.face, self.models.ranks)
        branches = [Branch(self.contexts[0], motion)]
        if self.guided:
            if self.unconditional_motion is None or self.unconditional_motion.shape != motion.shape:
                black = np.zeros_like(clip.face)
                self.unconditional_motion = self.transformer.encode_face(black, self.models.ranks)
            branches.append(Branch(self.contexts[1], self.unconditional_motion, "uncond"))
        return branches

    def _known(self, clip: ClipInput, guide: Tensor | None) -> Tensor:
        """Mask and latents of what is known, (1, 20, T_lat + 1, h, w), the reference picture in the first slot."""
        frames = len(clip.pose)
        video = torch.zeros(1, 3, frames, *self.size, device=self.models.device)
        known = torch.zeros(frames, *(side // cond.VAE_STRIDE for side in self.size))
        if clip.background is not None and clip.mask is not None:
            video = cond.to_tensor(clip.background, self.models.device)
            known = cond.background_known(clip.mask)
        if guide is not None:
            video[0, :, : guide.shape[1]] = guide
            known[: guide.shape[1]] = 1
        latents = self._encode_known(video, guide) if clip.background is None else self.vae.encode_video(video)
        latents = torch.cat([self.reference_latents, latents], dim=2)
        mask = cond.known_pixels(known).to(latents)
        mask = torch.cat([torch.ones_like(mask[:, :, :1]), mask], dim=2)
        return torch.cat([mask, latents], dim=1)

    def _encode_known(self, video: Tensor, guide: Tensor | None) -> Tensor:
        """Latents of a video that is all zeros after the guide."""
        if guide is not None:
            return self.vae.encode_video(video, still_from=guide.shape[1])
        shape = "x".join(map(str, video.shape[2:]))
        latents = self.models.cache.get(
            f"blank {self.models.device.type} {self.vae.dtype} {self.vae.tiled} {shape}",
            lambda: self.vae.encode_video(video, still_from=0),
        )
        return latents.to(self.models.device)

    def _draw_noise(self, frames: int) -> Tensor:
        """Noise of one clip, (1, 16, T_lat + 1, h, w). On the CPU: the same whatever device generates."""
        slots = (frames - 1) // 4 + 2
        height, width = (side // cond.VAE_STRIDE for side in self.size)
        return torch.randn(1, self.vae.config["z_dim"], slots, height, width, generator=self.generator)
