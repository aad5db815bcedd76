"""Conditions the segments of Wan-Animate-2: the driving video's frames, as they are."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from wan_orchestration.engine import animator
from wan_orchestration.engine.animator import Conditions
from wan_orchestration.engine.conditioning import to_tensor
from wan_orchestration.engine.transformer.compilation import Compilation
from wan_orchestration.engine.vae.model import STRIDE
from wan_orchestration.families.animate_2.driving import Where, Window
from wan_orchestration.families.animate_2.family import LOG_SCALE
from wan_orchestration.families.animate_2.transformer import UNCONDITIONAL_SKIPS, Animate2Transformer, InContextBranch


@dataclass(frozen=True)
class SegmentInput:
    """Input frames of one segment, (T, H', W', 3) uint8 RGB. Their size may differ from the generated frames'."""

    driving: np.ndarray


class Animator(animator.Animator):
    """Generates the segments of one job."""

    transformer: Animate2Transformer
    needs_lse = True

    @property
    def prompts(self) -> list[str]:
        return [*super().prompts, self.settings.prompt_ref]

    def _prepare_transformer(self, segments: int) -> Compilation:
        compilation = super()._prepare_transformer(segments)
        where: Where = "device" if self.settings.driving_cache == "auto" else self.settings.driving_cache
        self.transformer.keep_driving(where, self.settings.driving_cache_fp8)
        return compilation

    def forget_driving(self) -> None:
        self.transformer.driving.clear()

    @torch.no_grad()
    def condition(self, segment: SegmentInput, guide: Tensor | None) -> Conditions:
        self.forget_driving()
        frames = len(segment.driving)
        with self.stopwatch.during("encoding"):
            video = to_tensor(segment.driving, self.models.device)
            features = self._encode_picture(video[:, :, :1])
            with self.models.without_transformer():
                driving = self.vae.encode_video(video)
                known = self._encode_known(frames, guide)
            del video
            context = self._embed(self.texts[-1], features)
            self.transformer.read_driving(driving, InContextBranch(context, "driving"), self.size[1] // 16)
        self.transformer.driving.window = self._window(driving, known)
        branches = [InContextBranch(self.contexts[0], "cond")]
        if self.settings.guided:
            branches.append(InContextBranch(self.contexts[1], "uncond", UNCONDITIONAL_SKIPS))

        def denoise(latents: Tensor, timestep: Tensor, branch: InContextBranch) -> Tensor:
            return self.transformer.denoise(latents, timestep, known, branch)

        return Conditions(frames, branches, denoise)

    def _window(self, driving: Tensor, known: Tensor) -> Window:
        tokens, driving_tokens = (one.shape[3] * one.shape[4] // 4 for one in (known, driving))
        log_scale = LOG_SCALE[self.settings.variant]
        if self.settings.empty_slots == "none":
            return Window(tokens, driving_tokens, log_scale=log_scale)
        clip_len = self.settings.clip_len
        return Window.published(tokens, driving_tokens, known.shape[2], self.area, clip_len, log_scale)

    def _encode_known(self, frames: int, guide: Tensor | None) -> Tensor:
        """Mask and latents of the known pixels, (1, 20, T_lat + 1, h, w): the picture, and the guide's last frame."""
        video = torch.zeros(1, 3, frames, *self.size, device=self.models.device)
        known = torch.zeros(frames, *(side // STRIDE for side in self.size))
        if guide is not None:
            video[0, :, :1] = guide
            known[:1] = 1
        return self._with_picture(known, self._encode_blank(video, guide))
