"""Settings of the checks of clips and videos: thresholds, and which checks keep a job from generation."""

from typing import Any, Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from wan_orchestration.settings.generate import GenerateSettings

BLANK_DEVIATION = 1.0
"""A frame is blank if its values deviate from their mean by less than this (of 255)."""

BlockingCheck = Literal["skeleton", "face", "mask", "no_jumps"]


class CheckSettings(BaseSettings):
    """What the checks of clips and videos do: the `checks` block of `job.yaml`, else `WAN_CHECK_*` variables."""

    model_config = SettingsConfigDict(env_prefix="WAN_CHECK_")

    severity: Literal["warn", "error"] = Field(
        default="warn",
        description="Severity of the quality checks; integrity checks (decodable, length, ...) are always errors.",
    )
    block: list[BlockingCheck] = Field(
        default=[],
        description="Checks of clips that keep a job from generation if they fail: skeleton, face, mask, no_jumps.",
    )
    skeleton: float = Field(default=0.9, ge=0, le=1, description="Smallest share of frames with a skeleton.")
    face: float = Field(default=0.8, ge=0, le=1, description="Smallest share of frames with a face.")
    confidence: float = Field(default=0.5, ge=0, le=1, description="Smallest mean confidence of the drawn joints.")
    jump: float = Field(
        default=0.15,
        gt=0,
        description="Largest movement of the skeleton from one frame to the next, as a share of the frame's height.",
    )
    empty_masks: float = Field(default=0.0, ge=0, le=1, description="Largest share of frames with an empty mask.")
    least_side: int = Field(default=256, ge=16, description="Smallest side of the clips, px.")
    least_fps: float = Field(default=8.0, gt=0, description="Smallest number of frames per second.")
    most_fps: float = Field(default=60.0, gt=0, description="Largest number of frames per second.")
    frozen_seconds: float = Field(
        default=0.5, gt=0, description="Longest time that the picture may stand still while the pose moves."
    )
    colour_drift: float = Field(
        default=8.0, gt=0, description="Largest colour difference (CIE 1976) of a segment from the first."
    )
    seam: float = Field(
        default=1.5, gt=0, description="Largest change where two segments meet, relative to changes inside segments."
    )
    pose: float = Field(
        default=0.6,
        ge=0,
        le=1,
        description="Smallest similarity (OKS) of the pose found in the video and the driving pose.",
    )
    identity: float = Field(
        default=0.5,
        ge=-1,
        le=1,
        description="Smallest cosine similarity of CLIP features: the person in the video, and the reference picture.",
    )

    def of_segments(self) -> dict[str, float]:
        """The thresholds that a segment misses if it came out badly."""
        return self.model_dump(include={"frozen_seconds", "colour_drift", "seam", "pose", "identity"})


def decisive(generate: GenerateSettings, checks: CheckSettings) -> dict[str, Any]:
    """The settings that decide what a video shows, as JSON. With retakes, those of segments are included."""
    return generate.decisive() | ({"thresholds": checks.of_segments()} if generate.retakes else {})
