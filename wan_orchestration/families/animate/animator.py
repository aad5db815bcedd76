"""Conditions the segments of Wan2.2-Animate: pose, face, and in replace mode background and mask."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wan_orchestration.engine import animator
from wan_orchestration.engine.animator import Conditions
from wan_orchestration.engine.conditioning import to_tensor
from wan_orchestration.engine.vae.model import STRIDE
from wan_orchestration.families.animate.background import background_known
from wan_orchestration.families.animate.transformer import AnimateTransformer, FaceBranch


@dataclass(frozen=True)
class SegmentInput:
    """Input frames of one segment, (T, H, W, 3) uint8 RGB; the face is 512x512. Replace mode adds background and mask.

    T is clip_len, or less if the last segment is trimmed.
    """

    pose: np.ndarray
    face: np.ndarray
    background: np.ndarray | None = None
    mask: np.ndarray | None = None


class Animator(animator.Animator):
    """Generates the segments of one job."""

    transformer: AnimateTransformer

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.unconditional_motion: Tensor | None = None

    @torch.no_grad()
    def condition(self, segment: SegmentInput, guide: Tensor | None) -> Conditions:
        with self.stopwatch.during("encoding"):
            with self.models.without_transformer():
                known = self._encode_known(segment, guide)
                pose_latents = self.vae.encode_video(to_tensor(segment.pose, self.models.device))
            pose = self.transformer.embed_pose(pose_latents.to(self.models.dtype), self.settings.pose_strength)
            branches = self._branches(segment)

        def denoise(latents: Tensor, timestep: Tensor, branch: FaceBranch) -> Tensor:
            return self.transformer.denoise(latents, timestep, known, pose, branch)

        return Conditions(len(segment.pose), branches, denoise)

    def _branches(self, segment: SegmentInput) -> list[FaceBranch]:
        """Guidance compares the clips with a black face. Both branches have the same pose and the same strengths."""
        strength = self.settings.face_strength
        motion = self.transformer.encode_face(segment.face, self.models.ranks)
        branches = [FaceBranch(self.contexts[0], "cond", motion=motion, face_strength=strength)]
        if self.settings.guided:
            if self.unconditional_motion is None or self.unconditional_motion.shape != motion.shape:
                black = np.zeros_like(segment.face)
                self.unconditional_motion = self.transformer.encode_face(black, self.models.ranks)
            motion = self.unconditional_motion
            branches.append(FaceBranch(self.contexts[1], "uncond", motion=motion, face_strength=strength))
        return branches

    def _encode_known(self, segment: SegmentInput, guide: Tensor | None) -> Tensor:
        """Mask and latents of the known pixels, (1, 20, T_lat + 1, h, w), the reference picture in the first slot."""
        frames = len(segment.pose)
        video = torch.zeros(1, 3, frames, *self.size, device=self.models.device)
        known = torch.zeros(frames, *(side // STRIDE for side in self.size))
        if segment.background is not None and segment.mask is not None:
            video = to_tensor(segment.background, self.models.device)
            known = background_known(segment.mask)
        if guide is not None:
            video[0, :, : guide.shape[1]] = guide
            known[: guide.shape[1]] = 1
        latents = self._encode_blank(video, guide) if segment.background is None else self.vae.encode_video(video)
        return self._with_picture(known, latents)
