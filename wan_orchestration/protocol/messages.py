"""What a step asks of a launch, and what the launch reports.

A step writes the request to a JSON file, which rank 0 of the worker reads. Rank 0 reports `Progress`, each
`FinishedSegment` and a `Result` per task: `worker` sends them over Dagster Pipes, `infer` shows them on the terminal.
"""

from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from wan_orchestration.jobs.clips import Clips
from wan_orchestration.settings.checks import CheckSettings, decisive
from wan_orchestration.settings.generate import GenerateSettings, Mode
from wan_orchestration.settings.preprocess import PreprocessSettings
from wan_orchestration.stopwatch import Phase

BY_ALIAS = ConfigDict(validate_by_name=True, validate_by_alias=True, serialize_by_alias=True)
"""For models whose JSON keys call a segment a clip, as they did in version 0.1."""


class Task(BaseModel):
    """One video to generate."""

    job_id: str
    clips: Clips
    output: Path
    """Folder that receives `video.mp4`, `poster.jpg`, `preview.webp` and `result.json`."""
    settings: GenerateSettings
    created_at: datetime
    save_frames: Path | None = None
    """An npz file that receives the unquantised frames too: `frames`, (3, T, H, W) float32 in [-1, 1]."""
    checks: CheckSettings = Field(default_factory=CheckSettings)
    """The thresholds that a segment misses if it came out badly."""

    def decisive(self) -> dict[str, Any]:
        """The settings that decide what the video shows, as JSON."""
        return decisive(self.settings, self.checks)


class Request(BaseModel):
    """What one launch generates. It loads the weights once."""

    kind: Literal["generate"] = "generate"
    snapshot: Path
    revision: str | None = None
    variant: str | None = None
    """The checkpoint of the snapshot; None: the first that is there."""
    tasks: list[Task]
    warm: bool = False
    """Whether an earlier run had started the launch."""


class CharacterRequest(BaseModel):
    """A further character of a job: its picture, and the settings for the person whom it replaces."""

    reference: Path
    settings: PreprocessSettings


class PreprocessRequest(BaseModel):
    """What one launch preprocesses: a job's driving video and picture, into its clips."""

    kind: Literal["preprocess"] = "preprocess"
    job_id: str
    driving: Path
    reference: Path
    output: Path
    """Folder that receives the clips and `preprocess.json`, the `PreprocessResult`."""
    preview: Path | None = None
    """Folder that first receives the same of the first two seconds, for somebody who waits to look at them."""
    settings: PreprocessSettings
    others: list[CharacterRequest] = []
    """Characters after the first."""
    snapshot: Path | None
    """Folder of weights, for its `process_checkpoint/`."""
    models_root: Path
    warm: bool = False
    """Whether an earlier run had started the launch."""


AnyRequest: TypeAdapter[Request | PreprocessRequest] = TypeAdapter(
    Annotated[Request | PreprocessRequest, Field(discriminator="kind")]
)


class PreprocessProgress(BaseModel):
    """How many frames of one pass over the driving video are done."""

    kind: Literal["preprocess_progress"] = "preprocess_progress"
    job_id: str
    phase: str
    done: int
    total: int

    @property
    def words(self) -> str:
        """What is being done."""
        if self.done >= self.total:
            return {
                "preview": "the preview is made",
                "keypoints": "fitting the motion",
                "clips": "finishing the clips",
            }.get(self.phase, self.phase)
        doing = {
            "preview": "making a preview",
            "keypoints": "finding the keypoints",
            "clips": "drawing the clips",
        }.get(self.phase, self.phase)
        return f"{doing}, frame {self.done} of {self.total}"

    def __str__(self) -> str:
        return f"{self.job_id}: {self.words}"


class Notice(BaseModel):
    """What a user should know about the clips. `frames` are ranges (first, last); empty if it concerns all frames."""

    text: str
    frames: list[tuple[int, int]] = []


class LookPerson(BaseModel):
    """A person in `people.jpg`."""

    number: int
    """The N of `person: index:N` that means this person."""
    box: tuple[float, float, float, float]
    """x0, y0, x1, y1 in fractions of the frame's sides."""
    followed: bool
    """Whether the clips show this person's motion."""


class Look(BaseModel):
    """What a person should see before a video is generated: `look.json` beside the clips.

    `overlay.mp4` lies beside it (the driving video with the skeleton, frame for frame with the clips), as do
    `people.jpg` (one frame, without drawings) and `timeline.jpg` (pictures of the whole driving video, side by side).
    """

    frames: int
    fps: float
    start: float
    """Second of the driving video at which the clips begin."""
    end: float
    """Second of the driving video at which the clips end."""
    source_seconds: float
    """Duration of the whole driving video."""
    source_width: int
    source_height: int
    people: list[LookPerson]
    """The people whom a number means, in the order of their numbers."""
    people_frame: int
    """Number of the clips' frame that `people.jpg` shows: the first with the most people."""
    people_seconds: float
    """Its second in the driving video."""
    warnings: list[Notice]


class PreprocessResult(BaseModel):
    """The clips that were made, and how. Also written as `preprocess.json` beside them."""

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
    """Number of frames in which the person was found."""
    face_found: int
    """Number of frames in which the face was found."""
    retarget: str
    """The rule that was used; also "off" if the picture shows no person."""
    masks: str | None
    contact_sheet: Path
    warnings: list[Notice]
    seconds: dict[str, float]
    peak_memory_bytes: int
    settings: PreprocessSettings
    warm: bool = False
    """Whether an earlier run had started the launch."""
    characters: list["PreprocessResult"] = []
    """The clips of further characters. `warnings` includes theirs."""


class PreprocessOutcome(BaseModel):
    """The clips of a `PreprocessRequest`, or the error."""

    kind: Literal["preprocess_outcome"] = "preprocess_outcome"
    job_id: str
    result: PreprocessResult | None = None
    error: str | None = None
    bad_input: bool = False
    """True if the input is at fault, so that a retry cannot help."""


class Progress(BaseModel):
    """How much of a job's video is generated."""

    model_config = BY_ALIAS

    kind: Literal["progress"] = "progress"
    job_id: str
    phase: Phase | Literal["starting"]
    """In phase "starting", the worker imports the engine. Nothing else is known yet."""
    fraction: float | None = Field(default=None, ge=0, le=1)
    """Share of the time that the whole generation takes."""
    segment: Annotated[int, Field(alias="clip")] = 0
    """The segment in progress, from 1; 0 before the first."""
    segments: Annotated[int, Field(alias="clips")] = 0
    step: int = 0
    """Number of denoising steps of this segment that are done."""
    steps: int = 0
    take: int = 1
    """The take of this segment, from 1: above 1 if the segment is made again."""
    seconds_per_step: float | None = None
    """None until the first denoising step of this run is done."""
    eta_seconds: float | None = None
    """Expected seconds until the video is done."""

    @property
    def words(self) -> str:
        """What is being done."""
        segment = f"segment {self.segment} of {self.segments}" + (f", take {self.take}" if self.take > 1 else "")
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
    """Wall time of this run by phase, measured on rank 0. The phases add up to `total`.

    Seconds of an earlier, interrupted run are not included; those of its segments are in `Result.made_segments`.
    """

    load: float = 0.0
    """Loading and placing weights and LoRAs; 0 if an earlier task of the launch has loaded the same."""
    encode: float = 0.0
    """Finding, reading and encoding the inputs. The first task of a request includes opening the snapshot."""
    compile: float = 0.0
    denoise: float = 0.0
    decode: float = 0.0
    finish: float = 0.0
    """Waiting for segments to be written, joining them, and measuring the quality."""
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
    """Measures of a finished video; None for those that could not be taken, see `not_measured`."""

    frozen_frames: int
    """The longest run of frames in which the picture stands still while the pose moves."""
    colour_drift: list[float]
    """Distance of each segment from the first, in units of CIE 1976 colour difference."""
    seam: float
    """The largest change at a border of two segments, relative to those inside segments; about 1 or less is good."""
    seam_frame: int | None = None
    """The frame after the border with the largest change."""
    pose_similarity: float | None = None
    """OKS in 0..1 of the pose that an estimator finds in the video, relative to the driving pose."""
    identity: float | None = None
    """Cosine of the CLIP features of the person in the video and in the reference picture."""
    not_measured: dict[str, str] = {}
    """Why a measure is missing, by its name."""


class SegmentMeasures(BaseModel):
    """Measures of one take of a segment; None for those that could not be taken, see `not_measured`."""

    finite: bool
    """False if a decoded frame held NaN or infinity."""
    blank_frames: int | None = None
    """Number of frames that show a single colour."""
    frozen_frames: int | None = None
    """The longest run of frames in which the picture stands still while the pose moves."""
    colour_drift: float | None = None
    """Distance from the first segment, in units of CIE 1976 colour difference."""
    seam: float | None = None
    """The change from the segment before, relative to the changes inside earlier segments; about 1 or less is good."""
    pose_similarity: float | None = None
    """OKS in 0..1 of the pose that an estimator finds, relative to the driving pose."""
    identity: float | None = None
    """Cosine of the CLIP features of the person and of the reference picture."""
    colours: list[float] = []
    """Means, then standard deviations of L, a and b."""
    change: float | None = None
    """How much a frame differs from the one before: mean absolute difference of values (of 255), 95th percentile."""
    pose_change: float | None = None
    """The same of the pose clip."""
    not_measured: dict[str, str] = {}
    """Why a measure is missing, by its name."""


class Take(BaseModel):
    """A segment as it was made with one seed."""

    take: int
    """From 0."""
    seed: int
    """Of the noise. Take 0 of each segment uses the next part of the sequence that the job's seed gives."""
    seconds: float
    measures: SegmentMeasures
    misses: dict[str, float] = {}
    """By measure, how far it misses its threshold, relative to the threshold."""
    kept: bool = False
    """Whether the video shows this take."""

    @property
    def score(self) -> float:
        """The sum of the misses: the best take has the lowest."""
        return sum(self.misses.values())

    @property
    def missed(self) -> str:
        """The misses in words; empty if there are none."""
        plain = ("finite", "blank")
        return ", ".join(name if name in plain else f"{name} by {share:.0%}" for name, share in self.misses.items())

    def __str__(self) -> str:
        return f"take {self.take + 1} " + (f"misses {self.missed}" if self.misses else "is good")


class SegmentFacts(BaseModel):
    """A finished segment of a video."""

    frames: int
    seconds: float
    """Of all takes, without loading. The first segment of a run includes encoding the prompts and the picture."""
    seconds_per_step: float
    """Per denoising step."""
    placement: str | None = None
    """Where the models lay; None for segments of a version that did not record it."""
    character: int | None = None
    """The character whom the segment puts in, from 1; None if the job has no `characters`."""
    takes: list[Take] = []
    """How the segment was made, and again; empty for segments of a version that did not measure them."""

    @property
    def kept(self) -> Take | None:
        """The take that the video shows; None for segments of a version that did not measure them."""
        return next((take for take in self.takes if take.kept), None)


class FinishedSegment(SegmentFacts):
    """Reports a segment as soon as it is generated."""

    model_config = BY_ALIAS

    kind: Literal["clip"] = "clip"
    job_id: str
    segment: Annotated[int, Field(alias="clip")]
    """From 1."""
    segments: Annotated[int, Field(alias="clips")]

    def __str__(self) -> str:
        line = f"{self.job_id}: segment {self.segment} of {self.segments}, {self.frames} frames in {self.seconds:.1f} s"
        if len(self.takes) > 1 and self.kept:
            line += f", {len(self.takes)} takes, take {self.kept.take + 1} is kept"
        return line


class Result(BaseModel):
    """How a task ended: the content of `result.json`, and what `infer` prints."""

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
    """Number of segments that an earlier, interrupted run generated."""
    restarted: str | None = None
    """Why finished segments were generated again."""
    finite: bool | None = None
    """False if a decoded frame held NaN or infinity."""
    seconds: Seconds = Seconds()
    warm: bool = False
    """Whether an earlier run had started the launch."""
    made_segments: Annotated[list[SegmentFacts], Field(alias="made_clips")] = []
    """All segments in order, including those of an earlier run."""
    quality: Quality | None = None
    peak_memory_bytes: int | None = None
    """Peak device memory on CUDA, peak resident memory of the process on the CPU."""
    device: str | None = None
    dtype: str | None = None
    attention: str | None = None
    """Name of the self-attention kernel."""
    tf32: bool | None = None
    """Whether float32 convolutions were computed in TF32."""
    compiled: bool | None = None
    compile_error: str | None = None
    """Why blocks ran uncompiled although they were to be compiled."""
    placement: str | None = None
    """Placement of the last segment; see `made_segments` for the others."""
    notices: list[str] = []
    """What a user should know about the inputs and how they were used."""
    settings: GenerateSettings | None = None
    snapshot: SnapshotInfo | None = None
    error: str | None = None
    bad_input: bool = False
    """True if the input is at fault, so that a retry cannot help."""
    may_pass: bool = False
    """True if the ranks lost their connections, or an earlier run may have damaged the launch: a retry may help."""

    @classmethod
    def read(cls, path: Path) -> "Result | None":
        """The content of a `result.json`; None if it is missing or cannot be read."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValueError):
            return None


class Reporter(Protocol):
    """Receives what a launch reports. Only rank 0 calls it; a second thread may call `progress`."""

    def log(self, message: str) -> None: ...
    def progress(self, progress: Progress) -> None: ...
    def segment(self, segment: FinishedSegment) -> None: ...
    def finished(self, result: Result) -> None: ...
