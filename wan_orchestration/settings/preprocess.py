"""How clips are made: the `preprocess` block of `job.yaml`, the launchpad, the API's fields and the flags."""

import re
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from wan_orchestration.settings.generate import Mode


class PreprocessSettings(BaseModel):
    """How pose and face clips are made from a driving video and a picture.

    Where a job is taken in, `WAN_PREPROCESS_<FIELD>` gives what it leaves out.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    mode: Mode = Field("animate", description="As for generation; replace also makes background and mask clips.")
    estimator: Literal["auto", "vitpose", "light", "file"] = Field(
        "auto",
        description="Who finds the keypoints. vitpose: the snapshot's networks; light: small networks that run "
        "anywhere; file: keypoints beside the driving video, and for retarget beside the picture "
        "(reference_keypoints.npz or .json). auto: vitpose if the snapshot has it, else file if there is one, else "
        "light.",
    )
    channel_order: Literal["published", "rgb"] = Field(
        "published",
        description="Colours that ViTPose is shown. published: blue first, as when the model's training clips "
        "were made; rgb: as ViTPose itself was trained.",
    )
    person: str = Field(
        "largest",
        description="Who of several people: largest; index:N (1 is the largest, numbered on the contact sheet); "
        "box:x0,y0,x1,y1 that holds or touches them or point:x,y on them where people are first seen, in px of the "
        "driving video as it is shown, or in parts of its sides when all are up to 1.",
    )
    fps: float | None = Field(
        None,
        gt=0,
        le=120,
        description="Frames per second of the clips; default: the driving video's, divided to be at most 30.",
    )
    resolution_area: int = Field(
        1280 * 720,
        ge=64 * 64,
        le=4096 * 4096,
        description="About this many pixels in a frame of the generated video; its sides are multiples of 16 "
        "in the proportions of the picture (animate) or of the driving video (replace).",
    )
    start: float = Field(0.0, ge=0, description="Seconds into the driving video at which to begin.")
    end: float | None = Field(None, gt=0, description="Seconds into the driving video at which to stop.")
    max_frames: int | None = Field(None, ge=2, description="At most so many frames.")
    retarget: Literal["robust", "published", "off"] = Field(
        "robust",
        description="Fit the motion to the build of the picture's character (animate mode). robust: measured over "
        "all confident frames; published: by the published tools' rule, from the first frame.",
    )
    max_gap: float = Field(
        0.5, ge=0, description="Seconds without keypoints that are bridged; over longer ones nothing is drawn."
    )
    masks: Literal["auto", "sam2", "light", "file"] = Field(
        "auto",
        description="Who outlines the person (replace mode). sam2: the snapshot's SAM2; light: the light "
        "estimator's network; file: a mask video beside the driving video. auto: file if there is one, else sam2 "
        "if the snapshot has it, else light.",
    )
    mask_iterations: int = Field(3, ge=0, le=50, description="How often the mask is dilated; 0: used as it is.")
    mask_kernel: int = Field(7, ge=1, le=99, description="Side of the dilation's square, px.")
    mask_columns: int = Field(1, ge=1, le=100, description="Cells across the mask's box that are filled whole.")
    mask_rows: int = Field(1, ge=1, le=100, description="Cells down the mask's box that are filled whole.")
    empty_mask: Literal["error", "box"] = Field(
        "error", description="Where the outline is empty: stop, or take the box around the person's keypoints."
    )
    truncated_ok: bool = Field(
        False, description="Use the whole frames of a driving video that breaks off, instead of refusing it."
    )
    keypoints: str | None = Field(
        None,
        description="Keypoints beside the driving video, for estimator: file: an npz, an OpenPose JSON, or a folder "
        "of one JSON a frame; default: keypoints.npz, keypoints.json or keypoints/.",
    )
    mask_file: str = Field("mask.mp4", description="Mask video beside the driving video, for masks: file.")
    light_models: Path | None = Field(
        None, description="Folder with the light estimator's six .tflite files; default: fetched once."
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: CUDA when there is a device.")

    @field_validator("person")
    @classmethod
    def _a_person(cls, value: str) -> str:
        number = r"\s*\d+(\.\d+)?\s*"
        forms = rf"largest|index:\s*[1-9]\d*\s*|box:{number}(,{number}){{3}}|point:{number},{number}"
        if not re.fullmatch(forms, value):
            raise ValueError("expected largest, index:N (1 is the largest), box:x0,y0,x1,y1 or point:x,y")
        return value

    @field_validator("retarget", mode="before")
    @classmethod
    def _yaml_switch(cls, value: object) -> object:
        """YAML reads a bare `off` as false."""
        return {False: "off", True: "robust"}.get(value, value) if isinstance(value, bool) else value

    @field_validator("keypoints", "mask_file")
    @classmethod
    def _beside_the_video(cls, value: str | None) -> str | None:
        if value is not None and (value in ("", ".", "..") or "/" in value or "\\" in value):
            raise ValueError("expected a file's name, without folders: the file lies beside the driving video")
        return value

    @model_validator(mode="after")
    def _some_time(self) -> "PreprocessSettings":
        if self.end is not None and self.end <= self.start:
            raise ValueError(f"end {self.end:g} must be after start {self.start:g} seconds")
        return self
