"""Settings of preprocessing: the `preprocess` block of `job.yaml`, the launchpad, the API's fields and the flags."""

import re
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from wan_orchestration.families.choose import family_of
from wan_orchestration.families.family import Family
from wan_orchestration.settings.generate import Mode, Model

PREVIEW_SECONDS = 2.0
"""How much of a driving video the preview of its clips shows."""


def check_person(value: str) -> str:
    """Returns a choice of a person if its syntax is right. ValueError: it is not."""
    number = r"\s*\d+(\.\d+)?\s*"
    forms = rf"largest|index:\s*[1-9]\d*\s*|box:{number}(,{number}){{3}}|point:{number},{number}"
    if not re.fullmatch(forms, value):
        raise ValueError("expected largest, index:N (1 is the largest), box:x0,y0,x1,y1 or point:x,y")
    return value


def beside_the_video(value: str | None) -> str | None:
    """Returns the name of a file beside the driving video. ValueError: it is no file's name."""
    if value is not None and (value in ("", ".", "..") or "/" in value or "\\" in value):
        raise ValueError("expected a file's name, without folders: the file lies beside the driving video")
    return value


class PreprocessSettings(BaseModel):
    """How clips are made from a driving video and a picture.

    When a job is read, `WAN_PREPROCESS_<FIELD>` variables fill the fields that it leaves out.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    model: Model = Field(
        default="auto", description="As in generation: the family for which clips are made. They differ by family."
    )
    mode: Mode = Field(default="animate", description="As in generation; replace also makes background and mask clips.")
    estimator: Literal["auto", "vitpose", "light", "file"] = Field(
        default="auto",
        description="What finds the keypoints. vitpose: the snapshot's networks; light: small networks that run "
        "anywhere; file: a file of keypoints beside the driving video, and for retargeting another one beside the "
        "picture (reference_keypoints.npz or .json). auto: vitpose if the snapshot has it, else file if there is one, "
        "else light.",
    )
    channel_order: Literal["published", "rgb"] = Field(
        default="published",
        description="Order of the colour channels in ViTPose's input. published: blue first, as for the clips that the "
        "model was trained on; rgb: as ViTPose itself was trained.",
    )
    person: str = Field(
        default="largest",
        description="Whom to follow if several are visible. largest; index:N: the number on the contact sheet (1 is "
        "the largest); box:x0,y0,x1,y1: a box that contains or touches the person; point:x,y: a point on the person. "
        "Boxes and points refer to the frame where people first appear, in px of the driving video as displayed, or "
        "in fractions of its sides if no number is above 1.",
    )
    fps: float | None = Field(
        default=None,
        gt=0,
        le=120,
        description="Frames per second of the clips; default: the driving video's. If that is above 30, it is divided "
        "by a whole number to be at most 30, or 30 is used if less than 24 would be left. animate-2: 24.",
    )
    resolution_area: int = Field(
        default=1280 * 720,
        ge=32 * 32,
        le=4096 * 4096,
        description="Pixels in a frame of the generated video, approximately; its sides are multiples of 16 in the "
        "proportions of the picture (animate) or of the driving video (replace). animate-2: also of the driving clip, "
        "in its own proportions.",
    )
    start: float = Field(default=0.0, ge=0, description="Second of the driving video at which the clips begin.")
    end: float | None = Field(default=None, gt=0, description="Second of the driving video at which the clips end.")
    max_frames: int | None = Field(default=None, ge=2, description="Largest number of frames in the clips.")
    retarget: Literal["robust", "published", "off"] = Field(
        default="robust",
        description="Fit the motion to the proportions of the character's body (animate mode). robust: measured over "
        "all confident frames; published: measured in the first frame, as the published tools do.",
    )
    max_gap: float = Field(
        default=0.5,
        ge=0,
        description="Longest gap in the keypoints that is filled, in seconds; in longer ones no skeleton is drawn.",
    )
    masks: Literal["auto", "sam2", "light", "file"] = Field(
        default="auto",
        description="What finds the person's outline (replace mode). sam2: the snapshot's SAM2; light: the light "
        "estimator's network; file: a mask video beside the driving video. auto: file if there is one, else sam2 "
        "if the snapshot has it, else light.",
    )
    mask_iterations: int = Field(
        default=3, ge=0, le=50, description="How many times the mask is dilated; 0: it is used unchanged."
    )
    mask_kernel: int = Field(default=7, ge=1, le=99, description="Side of the square kernel of the dilation, px.")
    mask_columns: int = Field(
        default=1,
        ge=1,
        le=100,
        description="Columns of a grid over the mask's bounding box; each cell that holds part of the mask is filled.",
    )
    mask_rows: int = Field(default=1, ge=1, le=100, description="Rows of the same grid.")
    empty_mask: Literal["error", "box"] = Field(
        default="error",
        description="What to do in a frame without an outline. error: stop; box: use the box around the keypoints.",
    )
    mask_hints: list[str] = Field(
        default=[],
        max_length=100,
        description="Corrections of the person's outline (replace mode). box:x0,y0,x1,y1: the person is inside; "
        "point:x,y: belongs to the person; not:x,y: does not. Coordinates as for person, in the frame of people.jpg; "
        "@S after them names another moment, second S of the driving video, and #N the Nth of several characters "
        "(point:0.5,0.4@1.2#2; default: the first). Hints move with the person's keypoints through the whole video. "
        "For sam2 they are prompts. Outlines of light and file are cut to "
        "the boxes; not removes the connected part of the outline at the point, where it was drawn and where it moves "
        "to, or a small disc if this part is the person; point adds a small disc. Afterwards the mask is dilated and "
        "fills its grid (mask_columns, mask_rows): with one cell, only what changes its bounding box shows.",
    )
    truncated_ok: bool = Field(
        default=False, description="Accept a truncated driving video, and use the frames that are complete."
    )
    keypoints: str | None = Field(
        default=None,
        description="Name of the keypoint file beside the driving video, for estimator: file. It is an npz, an "
        "OpenPose JSON, or a folder with one JSON per frame; default: keypoints.npz, keypoints.json or keypoints/.",
    )
    mask_file: str = Field(
        default="mask.mp4", description="Name of the mask video beside the driving video, for masks: file."
    )
    light_models: Path | None = Field(
        default=None, description="Folder with the light estimator's six .tflite files; default: downloaded once."
    )
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="auto: CUDA if there is a CUDA device.")

    @property
    def family(self) -> Family:
        """The model family; the first one as long as `model` is "auto"."""
        return family_of(self.model)

    _person = field_validator("person")(check_person)
    _files = field_validator("keypoints", "mask_file")(beside_the_video)

    @field_validator("mask_hints")
    @classmethod
    def _hints(cls, value: list[str]) -> list[str]:
        number = r"\s*\d+(?:\.\d+)?\s*"
        place = rf"(?:box:({number}(?:,{number}){{3}})|(?:point|not):{number},{number})"
        for hint in value:
            match = re.fullmatch(rf"{place}(?:@{number})?(?:#[1-9])?", hint)
            if not match:
                raise ValueError(
                    "expected box:x0,y0,x1,y1, point:x,y or not:x,y, each with @seconds and #character if needed"
                )
            if match[1]:
                x0, y0, x1, y1 = (float(edge) for edge in match[1].split(","))
                if x0 >= x1 or y0 >= y1:
                    raise ValueError("expected box:x0,y0,x1,y1 with x0 < x1 and y0 < y1")
        return value

    @field_validator("retarget", mode="before")
    @classmethod
    def _yaml_switch(cls, value: object) -> object:
        """YAML reads an unquoted `off` as false."""
        return {False: "off", True: "robust"}.get(value, value) if isinstance(value, bool) else value

    @model_validator(mode="after")
    def _some_time(self) -> "PreprocessSettings":
        if self.end is not None and self.end <= self.start:
            raise ValueError(f"end {self.end:g} must be after start {self.start:g} seconds")
        return self

    def for_characters(self, count: int) -> "list[PreprocessSettings]":
        """These settings for each of several characters, with only the character's own mask hints, without #N.

        ValueError: a hint is for a character who does not exist.
        """
        hints: list[list[str]] = [[] for _ in range(count)]
        for hint in self.mask_hints:
            text, _, number = hint.partition("#")
            if int(number or 1) > count:
                raise ValueError(f"found {hint}, expected a character from 1 to {count}")
            hints[int(number or 1) - 1].append(text)
        return [self.model_copy(update={"mask_hints": own}) for own in hints]
