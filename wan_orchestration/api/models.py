"""The JSON models of the API: what clients send and get."""

from collections.abc import Collection
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, HttpUrl, JsonValue, create_model

from wan_orchestration.jobs.folder import KEY
from wan_orchestration.protocol.messages import Look
from wan_orchestration.settings.characters import MOST_CHARACTERS
from wan_orchestration.settings.defaults import default_in_words
from wan_orchestration.settings.generate import GenerateSettings
from wan_orchestration.settings.preprocess import PreprocessSettings

Status = Literal["queued", "running", "ready", "succeeded", "failed", "cancelled"]
FINISHED: tuple[Status, ...] = ("ready", "succeeded", "failed", "cancelled")
"""With these, nothing happens until somebody asks for more: a `ready` job waits for a look at its clips."""

TEXT_LENGTH = 5000

OF_BOTH = {"model", "mode"}
"""Settings of generation that preprocessing has too; requests have them once."""

NOT_FOR_CLIENTS = OF_BOTH | {"keypoints", "mask_file", "light_models"}
"""Preprocessing settings that clients cannot set: files of the server, and those that are fields of generation."""


def optional(model: type[BaseModel], exclude: Collection[str] = ()) -> type[BaseModel]:
    """A settings model in which all fields are optional and texts have a maximum length."""
    fields: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        if name not in exclude:
            bound = Field(max_length=TEXT_LENGTH if field.annotation in (str, str | None) else None)
            kind: Any = Annotated[field.annotation, *field.metadata, bound]
            description = f"{field.description} Default: {default_in_words(model, name)}."
            fields[name] = (kind | None, Field(default=None, description=description))
    return create_model(
        f"Optional{model.__name__}", __config__=ConfigDict(extra="forbid", allow_inf_nan=False), **fields
    )


class GenerateOptions(optional(GenerateSettings)):
    """How a video is generated."""

    def generate_given(self) -> dict[str, Any]:
        return self.model_dump(include=set(GenerateOptions.model_fields), exclude_none=True)


class PreprocessOptions(optional(PreprocessSettings, NOT_FOR_CLIENTS)):
    """How clips are made from a driving video and a picture."""


class Settings(GenerateOptions):
    """How to make a video. Fields that are left out come from the job's `job.yaml`, else from the server."""

    preprocess: PreprocessOptions | None = Field(
        default=None, description="How clips are made, if the job has a driving video."
    )
    priority: int | None = Field(
        default=None, ge=-1000, le=1000, description="Jobs of higher priority run first. Default: 0."
    )
    webhook_url: HttpUrl | None = Field(
        default=None, description="The server posts the job to this URL after it has ended; see docs/api.md."
    )
    review: bool | None = Field(
        default=None,
        description="Make the clips and stop: the job is then `ready`, until its video is started. Default: that of "
        "`job.yaml`, else false.",
    )

    def preprocess_given(self) -> dict[str, Any]:
        return self.preprocess.model_dump(exclude_none=True) if self.preprocess else {}


class Submission(Settings):
    """A request to make the video of a job folder on the server."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"src_root_path": "data/jobs/demo"},
                {"src_root_path": "data/jobs/demo", "sampling_steps": 4, "clip_len": 41, "seed": 7},
            ]
        },
    )

    src_root_path: str = Field(
        min_length=1, max_length=1000, description="data/jobs/<job>", examples=["data/jobs/demo"]
    )


Persons = Annotated[list[Annotated[str, Field(max_length=200)]], Field(max_length=MOST_CHARACTERS)]
"""Whom each character replaces, in the order of the pictures `reference`, `reference_2` and so on."""


class Upload(Settings):
    """The fields of a form that are not files."""

    characters: Persons | None = Field(
        None,
        description="JSON list: whom each of several pictures (`reference`, `reference_2`, ...) replaces, as "
        "`preprocess.person` names people. The mode is then replace.",
    )
    name: str | None = Field(
        None,
        pattern=f"^{KEY.pattern}$",
        description="Name of the new job folder. Default: made from the names of its files.",
    )


class Characters(BaseModel):
    """The fields of a form with pictures for people of a job's driving video."""

    model_config = ConfigDict(extra="forbid")

    characters: Persons = Field(
        min_length=1,
        description="JSON list: whom each picture replaces, in the order of the files `reference`, `reference_2`, ... "
        "Without a file `reference`, the first is the job's present picture.",
    )
    preprocess: PreprocessOptions | None = Field(
        default=None, description="How the clips are made. Default: as in the earlier request."
    )


class NewClips(BaseModel):
    """A request to make a job's clips again."""

    model_config = ConfigDict(extra="forbid")

    preprocess: PreprocessOptions = Field(
        default_factory=PreprocessOptions,
        description="How they are made, in place of the earlier request's settings; fields that are left out come from "
        "`job.yaml`.",
    )


class Start(optional(GenerateSettings, OF_BOTH)):
    """A request to make the video of clips that were looked at. Settings win over those of the earlier request."""


class JobProgress(BaseModel):
    """The progress of a running job."""

    phase: str = Field(
        description="preparing (the run waits or starts), keypoints or clips (preprocessing), starting (the engine), "
        "loading, compiling, encoding, denoising, decoding, finishing.",
        examples=["denoising"],
    )
    words: str = Field(description="What is being done.", examples=["segment 2 of 3, step 5 of 20"])
    fraction: float | None = Field(
        ge=0, le=1, description="Fraction of the whole run that is done, by time; null while unknown."
    )
    clip: int | None = Field(default=None, description="Number of the current segment, from 1.")
    clips: int | None = Field(default=None, description="Number of segments.")
    step: int | None = Field(default=None, description="Finished denoising steps of this segment.")
    steps: int | None = None
    frame: int | None = Field(default=None, description="Finished frames, in preprocessing.")
    frames: int | None = None
    seconds_per_step: float | None = None
    eta_seconds: float | None = Field(default=None, description="Estimate of the remaining seconds.")
    updated_at: datetime


class Video(BaseModel):
    """The finished video."""

    model: str | None = Field(description="The model family that made it.", examples=["animate-2"])
    variant: str | None = Field(description="Its checkpoint, if the family has several.", examples=["distilled"])
    frames: int | None
    fps: float | None
    width: int | None
    height: int | None
    clips: int | None
    seconds: float = Field(description="Wall time of generating it.")
    device: str | None


class Links(BaseModel):
    """Paths of the job's other resources; null for those that do not exist."""

    self: str
    events: str
    log: str
    media: str | None = Field(
        default=None,
        description="The newest video. While the job is not `succeeded`, it is one of earlier clips.",
    )
    poster: str | None = None
    preview: str | None = None
    reference: str | None = Field(default=None, description="The picture of the character.")
    driving: str | None = Field(default=None, description="The driving video; for ready clips, the pose clip.")
    clips: str | None = Field(default=None, description="The clips. Changes when other clips are there.")
    start: str | None = Field(default=None, description="Starts the video of the clips; null if that is not possible.")


class ClipsCheck(BaseModel):
    """A check of the clips."""

    name: str
    passed: bool
    text: str
    blocks: bool = Field(description="If it fails, no video is made of these clips.")


class Estimate(BaseModel):
    """What making the video of the clips will take, roughly."""

    seconds: float | None = Field(description="If no segment is made again.")
    most_seconds: float | None = Field(description="If each segment is made again as often as `retakes` allows.")
    price: float | None = Field(description="With `WAN_PRICE_PER_HOUR`, in its currency.")
    most_price: float | None
    pending: bool = Field(description="Whether the planner is still working. Ask again in some seconds.")
    basis: str = Field(description="What the estimate is derived from.", examples=["from 3 earlier videos"])


class ClipsLinks(BaseModel):
    """Paths of the clips and of pictures of them; null for those that do not exist."""

    overlay: str | None = Field(default=None, description="The driving video with the skeleton drawn over it.")
    driving: str | None = Field(default=None, description="The driving clip of a model that sees the video itself.")
    pose: str | None = None
    face: str | None = None
    mask: str | None = None
    background: str | None = None
    people: str | None = Field(default=None, description="A frame of the driving video with all people.")
    timeline: str | None = Field(default=None, description="16 frames of the whole driving video in one row.")
    contact_sheet: str | None = None


class CharacterClips(BaseModel):
    """The clips of one of several characters."""

    settings: dict[str, JsonValue] = Field(description="The preprocessing settings that were used.")
    links: ClipsLinks


class ClipsInfo(BaseModel):
    """A job's clips, for somebody to look at. `settings` and `links` are those of the first character."""

    preview: bool = Field(description="These are only the first two seconds; the whole clips are being made.")
    model: str = Field(description="The model family that they are for.")
    mode: str
    frames: int
    fps: float
    width: int = Field(description="Of the generated frames, px.")
    height: int
    look: Look | None = Field(
        description="What was found in the driving video. Null for ready clips, which have no overlay, people and "
        "timeline either."
    )
    estimator: str | None
    retarget: str | None
    masks: str | None
    settings: dict[str, JsonValue] | None = Field(description="The preprocessing settings that were used.")
    checks: list[ClipsCheck]
    blocked: str | None = Field(description="Why no video is made of these clips, and what to change.")
    estimate: Estimate
    links: ClipsLinks
    characters: list[CharacterClips] = Field(description="The clips of further characters, from the second.")


class JobInfo(BaseModel):
    """A job in the state of its newest run."""

    job_id: str = Field(examples=["demo"])
    status: Status
    cancelling: bool = Field(description="It is running, and was told to stop.")
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    queue_position: int | None = Field(description="1 is next; only while the job is queued.")
    priority: int
    review: bool = Field(description="The newest run makes only the clips, for somebody to look at.")
    progress: JobProgress | None = Field(description="Only while the job is running.")
    error: str | None = Field(description="Why it failed.")
    settings: dict[str, JsonValue] = Field(description="Settings in its job.yaml and in the request; not the defaults.")
    model: str | None = Field(
        description="The model family that it is for, also with `model: auto`. Null if its folder cannot be used."
    )
    variant: str | None = Field(description="The family's checkpoint, if it has several.")
    characters: list[str] = Field(
        description="Whom each character replaces, if its `job.yaml` has `characters`. Their pictures are "
        "inputs/reference, inputs/reference_2 and so on."
    )
    video: Video | None
    run_id: str = Field(description="Id of the newest run, as in Dagster's UI.")
    links: Links


class JobList(BaseModel):
    """A page of jobs, the newest runs first."""

    jobs: list[JobInfo]
    next: str | None = Field(description="Path of the next page; null after the last.")


class VariantInfo(BaseModel):
    """A checkpoint of a model family."""

    name: str
    installed: bool = Field(description="Whether its weights are on this server.")
    defaults: dict[str, JsonValue] = Field(description="Settings of a job that gives none, on this server.")
    presets: dict[str, dict[str, JsonValue]] = Field(
        description="By value of `preset`: the settings that differ from `defaults`."
    )


class FamilyInfo(BaseModel):
    """A model family."""

    name: str = Field(description="A value of `model`.", examples=["animate-2"])
    title: str
    summary: str
    prompt_example: str | None = Field(description="A prompt as it needs it; null: the prompt matters little.")
    variants: list[VariantInfo] = Field(description="Values of `variant`; a single one if it cannot be chosen.")
    foreign: list[str] = Field(description="Generation settings that do not apply; requests with them are refused.")
    foreign_preprocess: list[str] = Field(description="The same of the settings in `preprocess`.")


class Families(BaseModel):
    """The model families, and which settings apply to each."""

    auto: str = Field(description="What `model: auto` means on this server, for a driving video and a picture.")
    variant: str = Field(description="The value of `variant` by default, if the family has several.")
    families: list[FamilyInfo]


class Health(BaseModel):
    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    """Whether the server can accept jobs, and whether a daemon runs them."""

    status: Literal["ready", "not ready"]
    checks: dict[str, str] = Field(
        examples=[{"instance": "ok", "jobs_folder": "ok", "daemon": "no daemon: jobs wait until one runs"}]
    )
