"""Settings: the `WAN_*` environment, and the models behind `job.yaml`, the launchpad, the API and the flags.

Precedence, highest first: what is passed (flags, run config, then `job.yaml`), the `WAN_*` environment, the
defaults below. pydantic-settings does the last two: a field given to the constructor wins over its variable.

How a job is made (`GenerateSettings`, `PreprocessSettings`) is also written down and sent to other machines, so those
two models read no environment. `job.take_in` does, where a job comes in; what it gives has every field filled in.
"""

import os
import re
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, create_model, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

PROMPT = "视频中的人在做动作"
NEGATIVE_PROMPT = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，JPEG压缩残留，丑陋的，残缺的，多余的手指，画得不好的手部"
    "，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走"
)

PRESETS: dict[str, dict[str, Any]] = {
    "exact": {},
    "balanced": {"step_cache": 2, "trim_last_clip": True},
    "fast": {"sampling_steps": 6, "shift": 5.0, "sample_solver": "unipc", "trim_last_clip": True},
    "draft": {"sampling_steps": 6, "sample_solver": "unipc", "step_cache": 2, "trim_last_clip": True},
}
"""What `GenerateSettings.preset` fills in."""

Mode = Literal["animate", "replace"]
Quantization = Literal["off", "fp8", "fp8_matmul"]


class Environment(BaseSettings):
    """Where things are and how processes run, from `WAN_*` variables."""

    model_config = SettingsConfigDict(env_prefix="WAN_", protected_namespaces=())

    data_root: Path = Field(
        default=Path("data"),
        description="Folder of jobs, models, clips and videos; relative to the working directory.",
    )
    checkpoint_dir: Path | None = Field(
        default=None,
        description="A snapshot to use as it is, in the original or the Diffusers layout; nothing is downloaded.",
    )
    models_root: Path | None = Field(
        default=None, description="Where snapshots are downloaded to; default DATA_ROOT/models."
    )
    cache_root: Path | None = Field(
        default=None,
        description="Where launches keep what the next would compute again: prompt embeddings, compiled kernels; "
        "default MODELS_ROOT/.cache. Safe to delete.",
    )
    model_id: str = Field(default="Wan-AI/Wan2.2-Animate-14B", description="ModelScope repository of the weights.")
    model_revision: str = Field(default="master", description="Revision (branch, tag or commit) of the repository.")
    model_endpoint: str | None = Field(
        default=None, description="URL of a ModelScope-compatible hub; default: the client's."
    )
    enable_sequence_parallel: bool | None = Field(
        default=None, description="Split a clip over the ranks; default: on when torchrun started more than one."
    )
    enable_fsdp: bool = Field(default=False, description="Shard the transformer over the ranks.")
    launcher: Literal["torchrun", "slurm"] = Field(
        default="torchrun",
        description="Where videos are generated. torchrun: on this machine; slurm: on a cluster. "
        "`WAN_TORCHRUN_<FIELD>` or `WAN_SLURM_<FIELD>` set how.",
    )

    @model_validator(mode="after")
    def _absolute(self) -> "Environment":
        self.data_root = self.data_root.expanduser().absolute()
        self.models_root = (self.models_root or self.data_root / "models").expanduser().absolute()
        self.cache_root = (self.cache_root or self.models_root / ".cache").expanduser().absolute()
        if self.checkpoint_dir is not None:
            self.checkpoint_dir = self.checkpoint_dir.expanduser().absolute()
        return self

    @property
    def jobs_root(self) -> Path:
        return self.data_root / "jobs"

    @property
    def clips_root(self) -> Path:
        return self.data_root / "clips"

    @property
    def videos_root(self) -> Path:
        return self.data_root / "videos"

    @property
    def progress_root(self) -> Path:
        return self.data_root / "progress"


class World(BaseSettings):
    """This process's place among those that torchrun started; torchrun sets the variables, but for the last."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    wan_leases: str = ""
    """Locks of the devices that a Dagster step leased for this process, joined as in PATH."""

    @property
    def leases(self) -> list[Path]:
        return [Path(file) for file in self.wan_leases.split(os.pathsep) if file]


class DagsterHome(BaseSettings):
    """Where the Dagster instance is, from `DAGSTER_HOME`."""

    model_config = SettingsConfigDict(env_prefix="DAGSTER_")

    home: Path = Path("dagster_home")


class ApiSettings(BaseSettings):
    """How the HTTP API behaves, from `WAN_API_*` variables. Lists are JSON."""

    model_config = SettingsConfigDict(env_prefix="WAN_API_")

    token: SecretStr | None = Field(
        default=None,
        min_length=16,
        description="Clients must send it as a bearer token. Without one, only connections to this machine's loopback "
        "address are answered.",
    )
    hosts: list[str] = Field(
        default=[],
        description="Names by which clients may call the server, beside localhost and addresses.",
    )
    cors_origins: list[str] = Field(
        default=[], description="Origins of other sites whose pages may call the API, such as https://studio.example."
    )
    max_upload_mb: int = Field(default=2048, ge=1, description="Largest upload, all its files together.")
    max_video_seconds: float = Field(default=600, gt=0, description="Longest driving video or clip.")
    max_video_pixels: int = Field(default=4096 * 2304, ge=1, description="Largest frame of a driving video or clip.")
    max_queued: int = Field(default=500, ge=1, description="Jobs that may wait; more are refused for the time being.")
    max_streams: int = Field(default=100, ge=1, description="Connections that may follow jobs' events at once.")
    webhook_hosts: list[str] = Field(
        default=[], description="Hosts (name or name:port) that webhooks may be sent to; none: no webhooks."
    )
    webhook_secret: SecretStr | None = Field(
        default=None, min_length=16, description="Signs webhooks, see docs/api.md; needed for them."
    )


class ClientSettings(BaseSettings):
    """Which server the client commands talk to, from `WAN_API_*` variables."""

    model_config = SettingsConfigDict(env_prefix="WAN_API_")

    url: str = Field(default="http://127.0.0.1:8000", description="The server's URL.")
    token: SecretStr | None = Field(default=None, description="The server's token.")


class DropSettings(BaseSettings):
    """The drop folder, from `WAN_DROP_*` variables."""

    model_config = SettingsConfigDict(env_prefix="WAN_DROP_")

    settle_seconds: float = Field(
        10.0, ge=0, description="How long nothing in a job's folder may have changed before it is taken up."
    )
    interval_seconds: int = Field(5, ge=1, description="How often the drop folder is looked at.")
    run: bool = Field(
        True, description="Start runs for new and changed jobs; false: they only become partitions, or stale."
    )
    max_runs_per_tick: int = Field(4, ge=1, description="Runs started at once; the others follow at the next look.")
    max_jobs_per_run: int = Field(
        8, ge=1, description="Jobs that arrive together share a run, which loads the weights once, up to so many."
    )


class BatchSettings(BaseSettings):
    """The batch of all jobs whose videos are missing or out of date, from `WAN_BATCH_*` variables."""

    model_config = SettingsConfigDict(env_prefix="WAN_BATCH_")

    nightly: bool = Field(False, description="Start the nightly_batch schedule without a click in the UI.")
    cron: str = Field("0 1 * * *", description="When nightly_batch runs.")
    timezone: str = Field("UTC", description="Time zone of the cron expression, for instance Europe/Berlin.")
    max_jobs_per_run: int = Field(32, ge=1, description="Jobs in one launch, which loads the weights once.")


class FailureWebhookSettings(BaseSettings):
    """Who is told of runs that fail, from `WAN_FAILURE_WEBHOOK_*` variables."""

    model_config = SettingsConfigDict(env_prefix="WAN_FAILURE_WEBHOOK_")

    url: SecretStr | None = Field(
        None, description="Where JSON about each failed run is posted to; none: nowhere. May hold a secret."
    )
    tries: int = Field(4, ge=1, le=8, description="How often it is tried; the pause doubles from one second on.")
    timeout_seconds: float = Field(10.0, gt=0, description="How long an answer may take.")


class CheckSettings(BaseSettings):
    """What Dagster's checks of clips and videos call good enough, from `WAN_CHECK_*` variables."""

    model_config = SettingsConfigDict(env_prefix="WAN_CHECK_")

    severity: Literal["warn", "error"] = Field(
        "warn", description="Of the checks of quality. Those of integrity (decodable, length, ...) are errors."
    )
    skeleton: float = Field(0.9, ge=0, le=1, description="Least share of frames with a skeleton.")
    face: float = Field(0.8, ge=0, le=1, description="Least share of frames with a face.")
    confidence: float = Field(0.5, ge=0, le=1, description="Least mean confidence of the drawn joints.")
    jump: float = Field(
        0.15, gt=0, description="Farthest that the skeleton may move in one frame, in parts of the frame's height."
    )
    empty_masks: float = Field(0.0, ge=0, le=1, description="Largest share of frames with an empty mask.")
    least_side: int = Field(256, ge=16, description="Least side of the clips, px.")
    least_fps: float = Field(8.0, gt=0, description="Least frames a second.")
    most_fps: float = Field(60.0, gt=0, description="Most frames a second.")
    frozen_seconds: float = Field(
        0.5, gt=0, description="Longest that the picture may stand still while the pose moves."
    )
    colour_drift: float = Field(
        8.0, gt=0, description="Farthest that a clip's colours may be from the first clip's, CIE 1976 difference."
    )
    seam: float = Field(1.5, gt=0, description="Largest change between clips against the changes inside them.")
    pose: float = Field(0.6, ge=0, le=1, description="Least similarity (OKS) of the pose found to the pose wanted.")
    identity: float = Field(
        0.5, ge=-1, le=1, description="Least cosine of the CLIP features of the person and the reference picture."
    )


class GenerateSettings(BaseModel):
    """How a video is generated. Where a job is taken in, `WAN_DEFAULT_<FIELD>` gives what it leaves out."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    mode: Mode = Field(
        "animate",
        description="animate: the picture's character performs the motion; "
        "replace: it takes the place of the person in the driving video.",
    )
    clip_len: int = Field(77, ge=5, description="Frames generated at once, 4n+1.")
    refert_num: Literal[1, 5] = Field(1, description="Frames of the last clip that guide the next.")
    sampling_steps: int = Field(20, ge=1, le=1000, description="Denoising steps per clip.")
    shift: float = Field(5.0, gt=0, description="Shift of the flow-matching noise schedule.")
    sample_solver: Literal["dpm++", "unipc"] = Field("dpm++", description="ODE solver.")
    guide_scale: float = Field(1.0, ge=0, description="Classifier-free guidance; above 1 each step costs two forwards.")
    prompt: str = Field(PROMPT, description="What the video shows.")
    negative_prompt: str = Field(NEGATIVE_PROMPT, description="What guidance leads away from; unused at scale 1.")
    cfg_parallel: bool = Field(
        False,
        description="With guidance and an even number of GPUs: half of them compute what guidance leads to, half what "
        "it leads away from, instead of all of them the one after the other.",
    )
    seed: int = Field(42, ge=0, lt=2**63, description="Seed of the noise; the same on every device.")
    lora: list[str] = Field([], description="LoRA files fused into the transformer, each FILE or FILE:STRENGTH.")
    use_relighting_lora: bool = Field(False, description="Fuse the snapshot's relighting LoRA, meant for replace mode.")
    offload_model: bool = Field(
        True,
        description="Free the text encoder once the prompts are encoded, instead of keeping it on the device.",
    )
    attention: Literal["auto", "native", "cudnn", "flash2", "flash3", "flash4", "sage"] = Field(
        "auto",
        description="Attention kernel. auto: the fastest that is installed, by a short trial on this device; "
        "sage computes in 8 bits, which auto never chooses.",
    )
    compile: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Compile the transformer's blocks: faster steps after up to a minute once. auto: on CUDA, where "
        "the steps of the whole job are expected to gain more than that.",
    )
    placement: Literal["auto", "resident", "swap", "offload", "tiled"] = Field(
        "auto",
        description="Where the models lie. resident: on the device; swap: the transformer in host memory while the "
        "VAE works; offload: its blocks brought to the device one by one; tiled: besides, the VAE works on bands of "
        "the picture, whose seams are faint but not nothing. auto: the fastest that fits.",
    )
    tiled_fallback: Literal["restart", "fail"] = Field(
        "restart",
        description="With placement auto, when only tiled has memory enough in the middle of a video. restart: make "
        "the finished clips anew, so that all clips are alike; fail: stop, and keep them for a run with more memory.",
    )
    quantization: Quantization = Field(
        "off",
        description="fp8: the weights of the transformer's blocks in 8 bits, half the memory; fp8_matmul: their "
        "products as well, faster on GPUs since Ada and Hopper. Both change the picture and need the extra fp8.",
    )
    vae_dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="Precision of the VAE; bfloat16 takes half the memory and time, and shows a little."
    )
    step_cache: int = Field(
        0,
        ge=0,
        le=10,
        description="Compute only one in so many steps after the first three, and extrapolate the others (TaylorSeer): "
        "faster, less exact. 0: compute all.",
    )
    trim_last_clip: bool = Field(
        False,
        description="Generate only the frames of the last clip that the video needs: faster, but that clip comes out "
        "differently.",
    )
    preset: Literal["exact", "balanced", "fast", "draft"] = Field(
        "exact",
        description="Fills sampling_steps, shift, sample_solver and step_cache where they are not given. exact: the "
        "defaults; balanced: step_cache 2; fast: 6 steps, for a step-distilled LoRA given as lora; draft: 6 steps "
        "without one, for a first look.",
    )
    color_match: Literal["off", "lab"] = Field(
        "off",
        description="lab: give each clip the first clip's means and spreads of L, a and b, against colours that drift "
        "over long videos.",
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="Precision of the transformer; auto: bfloat16 on CUDA, float32 on the CPU."
    )
    tf32: bool = Field(
        True,
        description="Compute float32 convolutions, above all the VAE's, in TF32 on GPUs that have it: faster, rounded "
        "to about 1e-3, and what the published code does. Never with dtype: float32.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: CUDA when there is a device.")

    def decisive(self) -> dict[str, Any]:
        """The settings that decide what a video shows, as JSON.

        A setting counts if it changes what is computed, or the precision. It does not count if the same is computed in
        another order or another place: attention kernels, compiled blocks, devices, ranks and where the models lie
        change a video by the rounding of its precision only. Two of their values do count: attention in 8 bits, and
        the seams of bands.
        """
        exclude = {"attention", "cfg_parallel", "compile", "device", "offload_model", "placement", "preset"}
        exclude |= {"tiled_fallback"} | ({"guide_scale", "negative_prompt"} if self.guide_scale <= 1 else set())
        others = {"sage": self.attention == "sage", "tiled": self.placement == "tiled"}
        return self.model_dump(mode="json", exclude=exclude) | others

    @field_validator("color_match", "compile", "quantization", mode="before")
    @classmethod
    def _yaml_switch(cls, value: object) -> object:
        """YAML reads a bare `off` as false, and `on` as true."""
        return {False: "off", True: "on"}.get(value, value) if isinstance(value, bool) else value

    @field_validator("clip_len")
    @classmethod
    def _four_n_plus_one(cls, value: int) -> int:
        if value % 4 != 1:
            below = max(5, (value - 1) // 4 * 4 + 1)
            raise ValueError(f"must be 4n+1 (5, 9, ..., 77, 81); the nearest are {below} and {below + 4}")
        return value

    @model_validator(mode="after")
    def _fill_preset(self) -> "GenerateSettings":
        for name, value in PRESETS[self.preset].items():
            if name not in self.model_fields_set:
                setattr(self, name, value)
        return self

    @model_validator(mode="after")
    def _guides_fit(self) -> "GenerateSettings":
        if self.clip_len <= self.refert_num:
            raise ValueError(
                f"clip_len {self.clip_len} leaves nothing to generate after refert_num {self.refert_num} frames; "
                f"use a clip_len of at least {self.refert_num + 4}"
            )
        return self


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


class GenerateVariables(GenerateSettings, BaseSettings):
    """Settings whose missing fields come from `WAN_DEFAULT_*` variables."""

    model_config = SettingsConfigDict(env_prefix="WAN_DEFAULT_")


class PreprocessVariables(PreprocessSettings, BaseSettings):
    """Settings whose missing fields come from `WAN_PREPROCESS_*` variables."""

    model_config = SettingsConfigDict(env_prefix="WAN_PREPROCESS_")


def from_variables(model: type[BaseModel], prefix: str, exclude: set[str]) -> type[BaseSettings]:
    """A model's fields as settings, each with the variable `<prefix><FIELD>`, but for those to leave out."""
    fields: dict[str, Any] = {
        name: (field.annotation, field) for name, field in model.model_fields.items() if name not in exclude
    }
    settings = type("Settings", (BaseSettings,), {"model_config": SettingsConfigDict(env_prefix=prefix)})
    return create_model(model.__name__, __base__=settings, **fields)


@cache
def environment() -> Environment:
    """The process's `WAN_*` environment, read once."""
    return Environment()
