"""What the orchestrating side asks of the engine, and what it hears back.

A `Request` is a JSON file that every rank reads; `Progress` and `Result` are sent by rank 0 as they come
(over Dagster Pipes by `worker`, to the terminal by `infer`).
"""

from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from wan_orchestration.jobs.clips import Clips
from wan_orchestration.settings.generate import GenerateSettings, Mode
from wan_orchestration.settings.preprocess import PreprocessSettings
from wan_orchestration.stopwatch import Phase

BY_ALIAS = ConfigDict(validate_by_name=True, validate_by_alias=True, serialize_by_alias=True)
"""For messages whose keys in files still call a segment of the video a clip."""


class Task(BaseModel):
    """One video to generate."""

    job_id: str
    clips: Clips
    output: Path
    """Folder that receives `video.mp4`, `poster.jpg` and `result.json`."""
    settings: GenerateSettings
    created_at: datetime
    save_frames: Path | None = None
    """An npz file that also receives the frames unquantised: `frames`, (3, T, H, W) float32 in [-1, 1]."""


class Request(BaseModel):
    """Jobs for one launch: the weights are loaded once."""

    kind: Literal["generate"] = "generate"
    snapshot: Path
    revision: str | None = None
    tasks: list[Task]


class PreprocessRequest(BaseModel):
    """One job's clips to make from its driving video and picture."""

    kind: Literal["preprocess"] = "preprocess"
    job_id: str
    driving: Path
    reference: Path
    output: Path
    """Folder that receives the clips and `preprocess.json`, which says what was made."""
    settings: PreprocessSettings
    snapshot: Path | None
    """Folder of weights, for its `process_checkpoint/`."""
    models_root: Path


AnyRequest: TypeAdapter[Request | PreprocessRequest] = TypeAdapter(
    Annotated[Request | PreprocessRequest, Field(discriminator="kind")]
)


class PreprocessProgress(BaseModel):
    """Frames done of one pass over the driving video."""

    kind: Literal["preprocess_progress"] = "preprocess_progress"
    job_id: str
    phase: str
    done: int
    total: int

    @property
    def words(self) -> str:
        """What is being done."""
        if self.done >= self.total:
            return {"keypoints": "fitting the motion", "clips": "finishing the clips"}.get(self.phase, self.phase)
        doing = {"keypoints": "finding the keypoints", "clips": "drawing the clips"}.get(self.phase, self.phase)
        return f"{doing}, frame {self.done} of {self.total}"

    def __str__(self) -> str:
        return f"{self.job_id}: {self.words}"


class Notice(BaseModel):
    """What a user should know of the clips. Frames are given as (first, last); none where it concerns the whole."""

    text: str
    frames: list[tuple[int, int]] = []


class PreprocessResult(BaseModel):
    """What was made and how; also written as `preprocess.json` beside the clips."""

    output: Path
    mode: Mode
    frames: int
    fps: float
    width: int
    height: int
    """Of the pose clip, and in replace mode of the background and mask clips."""
    source_width: int
    source_height: int
    source_fps: float
    source_frames: int
    has_audio: bool
    estimator: str
    person_found: int
    """Frames."""
    face_found: int
    retarget: str
    """The rule that was used; off also where the picture shows no person."""
    masks: str | None
    contact_sheet: Path
    warnings: list[Notice]
    seconds: dict[str, float]
    peak_memory_bytes: int
    settings: PreprocessSettings


class PreprocessOutcome(BaseModel):
    """How a `PreprocessRequest` went."""

    kind: Literal["preprocess_outcome"] = "preprocess_outcome"
    job_id: str
    result: PreprocessResult | None = None
    error: str | None = None
    bad_input: bool = False
    """True where the error is the input's, so that a retry cannot help."""


class Progress(BaseModel):
    """How far the generation of a job's video is."""

    model_config = BY_ALIAS

    kind: Literal["progress"] = "progress"
    job_id: str
    phase: Phase | Literal["starting"]
    """Starting: the engine itself is being loaded, and nothing else is known yet."""
    fraction: float | None = Field(default=None, ge=0, le=1)
    """Of the whole generation, by time."""
    segment: Annotated[int, Field(alias="clip")] = 0
    """The one in progress, from 1; 0 before the first."""
    segments: Annotated[int, Field(alias="clips")] = 0
    step: int = 0
    """Denoising steps done of this segment."""
    steps: int = 0
    seconds_per_step: float | None = None
    """Once this run has done a step."""
    eta_seconds: float | None = None
    """Seconds that are expected to be left."""

    @property
    def words(self) -> str:
        """What is being done."""
        segment = f"segment {self.segment} of {self.segments}"
        if self.fraction == 1:
            return "the video is made"
        match self.phase:
            case "starting":
                return "starting the engine"
            case "loading":
                return "loading the weights"
            case "denoising":
                return f"{segment}, step {self.step} of {self.steps}"
            case "finishing":
                return "putting the video together" if self.segment in (0, self.segments) else f"writing {segment}"
            case "encoding" if not self.segment:
                return "encoding the prompt and the picture"
            case "encoding" | "decoding":
                return f"{self.phase} {segment}"
            case _:
                return self.phase

    def __str__(self) -> str:
        line = f"{self.job_id}: {self.words}"
        if self.fraction is not None:
            line += f", {self.fraction:.0%}"
        if self.seconds_per_step is not None:
            line += f", {self.seconds_per_step:.2f} s/step"
        if self.eta_seconds is not None:
            line += f", about {self.eta_seconds:.0f} s left"
        return line


class Seconds(BaseModel):
    """Wall time by phase, of this run and by the clock of rank 0; the parts add up to `total`.

    After an interruption, the segments of the earlier run are in `Result.made_segments` only. The first job of a launch
    includes the opening of the snapshot.
    """

    load: float = 0.0
    """Of weights and LoRAs, placing included; 0 where an earlier job of the launch has done it."""
    encode: float = 0.0
    """Finding, reading and encoding what the video is made of."""
    compile: float = 0.0
    denoise: float = 0.0
    decode: float = 0.0
    finish: float = 0.0
    """Waiting for segments to be written, joining them, measuring the quality."""
    total: float = 0.0

    @classmethod
    def of(cls, spent: dict[Phase, float]) -> "Seconds":
        return cls(
            load=spent["loading"],
            encode=spent["encoding"],
            compile=spent["compiling"],
            denoise=spent["denoising"],
            decode=spent["decoding"],
            finish=spent["finishing"],
            total=sum(spent.values()),
        )


class SnapshotInfo(BaseModel):
    path: Path
    layout: Literal["original", "diffusers"]
    revision: str | None = None


class Quality(BaseModel):
    """What a finished video looks like, in numbers; None for what could not be measured."""

    frozen_frames: int
    """Longest run of frames in which the picture stands still while the pose moves."""
    colour_drift: list[float]
    """Of each segment from the first, in units of CIE 1976 colour difference."""
    seam: float
    """Largest change between two segments against the changes inside segments; about 1 or less is good."""
    seam_frame: int | None = None
    pose_similarity: float | None = None
    """OKS in 0..1 of the pose that an estimator finds in the video, for the pose that drove it."""
    identity: float | None = None
    """Cosine of the CLIP features of the person in the video and of the reference picture."""
    not_measured: dict[str, str] = {}
    """Why a number is missing, by its name."""


class SegmentFacts(BaseModel):
    """One segment of the video."""

    frames: int
    seconds: float
    """Without loading. The first segment has the prompts and the picture in it."""
    seconds_per_step: float
    """Of denoising."""
    placement: str | None = None
    """Where the models lay; None: made by a version that did not note it."""


class FinishedSegment(SegmentFacts):
    """A segment of a job's video that has just been generated."""

    model_config = BY_ALIAS

    kind: Literal["clip"] = "clip"
    job_id: str
    segment: Annotated[int, Field(alias="clip")]
    """From 1."""
    segments: Annotated[int, Field(alias="clips")]

    def __str__(self) -> str:
        return f"{self.job_id}: segment {self.segment} of {self.segments}, {self.frames} frames in {self.seconds:.1f} s"


class Result(BaseModel):
    """The content of `result.json`, and what `infer` prints."""

    model_config = ConfigDict(BY_ALIAS, ser_json_inf_nan="null")

    kind: Literal["result"] = "result"
    job_id: str
    status: Literal["succeeded", "failed"]
    video_path: Path | None = None
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    frames: int | None = None
    fps: float | None = None
    width: int | None = None
    height: int | None = None
    segments: Annotated[int | None, Field(alias="clips")] = None
    resumed_segments: Annotated[int, Field(alias="resumed_clips")] = 0
    """Segments that an earlier, interrupted run has generated."""
    restarted: str | None = None
    """Why finished segments were generated again."""
    finite: bool | None = None
    """False where a decoded frame held NaN or infinity."""
    seconds: Seconds = Seconds()
    made_segments: Annotated[list[SegmentFacts], Field(alias="made_clips")] = []
    """Each segment in order, those of an earlier run included."""
    quality: Quality | None = None
    peak_memory_bytes: int | None = None
    """Peak device memory on CUDA, peak resident memory of the process on the CPU."""
    device: str | None = None
    dtype: str | None = None
    attention: str | None = None
    """Kernel of the self-attention."""
    tf32: bool | None = None
    """Whether float32 convolutions were computed in TF32."""
    compiled: bool | None = None
    compile_error: str | None = None
    """Why blocks ran uncompiled that were to be compiled."""
    placement: str | None = None
    """Of the last segment; see `made_segments` for the others."""
    notices: list[str] = []
    """What a user should know of the inputs and what was made of them."""
    settings: GenerateSettings | None = None
    snapshot: SnapshotInfo | None = None
    error: str | None = None
    bad_input: bool = False
    """True where the error is the input's, so that a retry cannot help."""
    may_pass: bool = False
    """True where the processes lost each other, so that a retry may help."""


class Reporter(Protocol):
    """Hears of a launch as it goes; called on rank 0 only."""

    def log(self, message: str) -> None: ...
    def progress(self, progress: Progress) -> None: ...
    def segment(self, segment: FinishedSegment) -> None: ...
    def finished(self, result: Result) -> None: ...
