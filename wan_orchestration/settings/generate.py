"""Settings of generation: the `generate` block of `job.yaml`, the launchpad, the API's fields and the flags."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from wan_orchestration.families.choose import family_of
from wan_orchestration.families.family import Family, Span

PROMPT = "视频中的人在做动作"

PROMPT_REF = "人物动作的参考视频"

NEGATIVE_PROMPT = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，JPEG压缩残留，丑陋的，残缺的，多余的手指，画得不好的手部"
    "，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走"
)

LATER_FIELDS = ("pose_strength", "face_strength", "retakes")
"""Fields that `decisive()` leaves out at their defaults, so that an update of this program makes no video stale."""

Model = Literal["auto", "animate", "animate-2"]

Mode = Literal["animate", "replace"]

Quantization = Literal["off", "fp8", "fp8_matmul"]


class GenerateSettings(BaseModel):
    """How a video is generated.

    When a job is read, `WAN_DEFAULT_<FIELD>` variables fill the fields that it leaves out.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, protected_namespaces=())

    model: Model = Field(
        default="auto",
        description="Model family. animate: Wan2.2-Animate, which sees the motion as a skeleton and a face; "
        "animate-2: Wan-Animate-2, which sees the driving video itself. auto: that of the configured weights; "
        "animate for ready clips and for mode replace.",
    )
    variant: Literal["distilled", "base"] = Field(
        default="distilled",
        description="Checkpoint of animate-2. distilled: 10 steps without guidance; base: 40 steps with guidance 3, "
        "about 8 times as slow.",
    )
    mode: Mode = Field(
        default="animate",
        description="animate: the character in the picture performs the motion; "
        "replace: the character replaces the person in the driving video.",
    )
    clip_len: int = Field(default=77, ge=5, description="Frames in a segment, which are generated at once: 4n+1.")
    refert_num: Literal[1, 5] = Field(default=1, description="Last frames of a segment that guide the next segment.")
    sampling_steps: int = Field(default=20, ge=1, le=1000, description="Denoising steps per segment.")
    shift: float = Field(default=5.0, gt=0, description="Shift of the flow-matching noise schedule.")
    sample_solver: Literal["dpm++", "unipc", "euler"] = Field(default="dpm++", description="ODE solver.")
    guide_scale: float = Field(
        default=1.0,
        ge=0,
        description="Classifier-free guidance; above 1 each denoising step needs two forward passes.",
    )
    pose_strength: float = Field(
        default=1.0,
        ge=0,
        le=2,
        description="Scale of the embedded pose clip. 1: as the model was trained; 0: the pose has no effect.",
    )
    face_strength: float = Field(
        default=1.0,
        ge=0,
        le=2,
        description="Scale of what the face adapters add. 1: as the model was trained; 0: the face has no effect.",
    )
    prompt: str = Field(
        default=PROMPT,
        description="What the video shows. For animate-2 describe the character and the background, not the motion.",
    )
    prompt_ref: str = Field(
        default=PROMPT_REF, description="What the driving video shows, for animate-2; the published prompt by default."
    )
    negative_prompt: str = Field(
        default=NEGATIVE_PROMPT, description="What guidance steers away from; unused if guide_scale is at most 1."
    )
    empty_slots: Literal["published", "none"] = Field(
        default="published",
        description="What animate-2 does with the places that a segment leaves empty in its window: frames smaller "
        "than resolution_area, a short last segment. published: they take part in the attention as zeros; none: they "
        "do not.",
    )
    cfg_parallel: bool = Field(
        default=False,
        description="With guidance and an even number of GPUs: one half computes the branch of the prompt, while the "
        "other half computes that of the negative prompt. Otherwise all GPUs compute one branch after the other.",
    )
    seed: int = Field(default=42, ge=0, lt=2**63, description="Seed of the noise; the same on every device.")
    lora: list[str] = Field(
        default=[], description="LoRA files to fuse into the transformer, each FILE or FILE:STRENGTH."
    )
    use_relighting_lora: bool = Field(
        default=False, description="Fuse the snapshot's relighting LoRA, meant for replace mode."
    )
    offload_model: bool = Field(
        default=True,
        description="Free the text encoder once the prompts are encoded; false: keep it on the device.",
    )
    attention: Literal["auto", "native", "cudnn", "flash2", "flash3", "flash4", "sage"] = Field(
        default="auto",
        description="Attention kernel. auto: the fastest installed one, found by a short trial on this device; "
        "sage: computes in 8 bits; auto never chooses it.",
    )
    compile: Literal["auto", "on", "off"] = Field(
        default="auto",
        description="Compile the transformer's blocks, which takes up to a minute and makes denoising steps faster. "
        "auto: on CUDA, if the whole job is expected to save more time than compiling takes.",
    )
    placement: Literal["auto", "resident", "swap", "offload", "tiled"] = Field(
        default="auto",
        description="Where the models lie. resident: on the device; swap: the transformer is moved to host memory "
        "while the VAE works; offload: the transformer's blocks are brought to the device one by one; tiled: as "
        "offload, and the VAE works on bands of the picture, which leaves faint seams. auto: the fastest that fits.",
    )
    tiled_fallback: Literal["restart", "fail"] = Field(
        default="restart",
        description="With placement auto: what to do if memory runs out in the middle of a video and only tiled still "
        "fits. restart: generate the finished segments again, so that all segments match; fail: stop, and keep the "
        "finished segments for a run with more memory.",
    )
    quantization: Quantization = Field(
        default="off",
        description="fp8: 8-bit weights of the transformer's blocks, half the memory; fp8_matmul: 8-bit products too, "
        "faster on Ada, Hopper and later GPUs. Both change the picture and need the extra fp8.",
    )
    vae_dtype: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="Precision of the VAE; bfloat16: half the memory and time, slightly visible.",
    )
    driving_cache: Literal["auto", "device", "inputs", "host", "host-inputs"] = Field(
        default="auto",
        description="Where animate-2 keeps what it has computed of a segment's driving frames. device: keys and values "
        "on the device; inputs: the inputs of each block, half the memory, from which it computes keys and values "
        "again; host, host-inputs: the same in host memory. auto: the fastest that fits.",
    )
    driving_cache_fp8: bool = Field(
        default=False,
        description="Keep the keys and values of animate-2's driving frames in 8 bits: half the memory, less exact.",
    )
    step_cache: int = Field(
        default=0,
        ge=0,
        le=10,
        description="N: after the first three denoising steps, compute only every Nth and extrapolate the others "
        "(TaylorSeer): faster, less exact. 0 or 1: compute all.",
    )
    trim_last_clip: bool = Field(
        default=False,
        description="Generate only the frames of the last segment that the video needs: faster, but the segment then "
        "looks different.",
    )
    preset: Literal["exact", "balanced", "fast", "draft"] = Field(
        default="exact",
        description="Default values of sampling_steps, shift, sample_solver, step_cache and trim_last_clip. exact: "
        "those of each field; balanced: step_cache 2; fast: 6 steps, for a step-distilled LoRA given as lora; draft: "
        "6 steps without such a LoRA, for a first look. All but exact set trim_last_clip. Of animate-2: fast has 6 "
        "steps (base: 20), draft the same and step_cache 2 (base: 3).",
    )
    color_match: Literal["off", "auto", "lab"] = Field(
        default="off",
        description="Against colour drift in long videos. auto: compare the frames that a segment repeats with the "
        "segment before, and correct the whole segment if their colours differ (in animate mode); lab: give each "
        "segment the means and standard deviations of L, a and b of the first segment.",
    )
    retakes: int = Field(
        default=0,
        ge=0,
        le=10,
        description="How often a segment that came out badly is made again with another seed; the best take is kept. "
        "The thresholds are those of the checks.",
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="Precision of the transformer; auto: bfloat16 on CUDA, float32 on the CPU."
    )
    tf32: bool = Field(
        default=True,
        description="Compute float32 convolutions, above all the VAE's, in TF32 on GPUs that have it: faster, rounded "
        "to about 1e-3, as the published code does. Has no effect with dtype: float32.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="auto: CUDA if there is a CUDA device.")

    @property
    def guided(self) -> bool:
        """Whether classifier-free guidance is on."""
        return self.guide_scale > 1

    @property
    def family(self) -> Family:
        """The model family; the first one as long as `model` is "auto"."""
        return family_of(self.model)

    @property
    def made_with(self) -> tuple[str, str | None]:
        """Names of the family and, if it has several, of the checkpoint."""
        variant = None if "variant" in self.family.foreign else self.family.variant(self.variant)
        return self.family.name, variant

    def spans(self, frames: int) -> list[Span]:
        """The segments of a video of this many frames."""
        return self.family.spans(self, frames)

    def segments(self, frames: int) -> int:
        """Number of segments of a video of this many frames."""
        return len(self.spans(frames))

    def of_model(self, model: str) -> "GenerateSettings":
        """The same settings for a model family. Fields that were left out get its defaults.

        ValueError (ValidationError): a field has a value that does not apply to this family.
        """
        given = {name: getattr(self, name) for name in self.model_fields_set}
        return GenerateSettings.model_validate(given | {"model": model})

    def decisive(self) -> dict[str, Any]:
        """The settings that decide what a video shows, as JSON.

        A setting is included if it changes what is computed, or the precision. It is left out if it has no effect
        (guidance that is off), or if it changes only the order or the place of the computation (attention kernel,
        compilation, device, placement), which changes a video by rounding only. Two values of such settings are
        included all the same: `sage`, which computes attention in 8 bits, and `tiled`, which leaves seams.
        Fields that do not apply to the family are left out, and `model`, which the snapshot's fingerprint implies.
        `LATER_FIELDS` are left out at their defaults.
        """
        exclude = {"attention", "cfg_parallel", "compile", "device", "offload_model", "placement", "preset"}
        exclude |= {"tiled_fallback"} | (set() if self.guided else {"guide_scale", "negative_prompt"})
        exclude |= {"model", "driving_cache", *self.family.foreign}
        exclude |= {name for name in LATER_FIELDS if getattr(self, name) == type(self).model_fields[name].default}
        others = {"sage": self.attention == "sage", "tiled": self.placement == "tiled"}
        return self.model_dump(mode="json", exclude=exclude) | others

    @field_validator("color_match", "compile", "quantization", mode="before")
    @classmethod
    def _yaml_switch(cls, value: object) -> object:
        """YAML reads an unquoted `off` as false, and `on` as true."""
        return {False: "off", True: "on"}.get(value, value) if isinstance(value, bool) else value

    @field_validator("clip_len")
    @classmethod
    def _four_n_plus_one(cls, value: int) -> int:
        if value % 4 != 1:
            below = max(5, (value - 1) // 4 * 4 + 1)
            raise ValueError(f"must be 4n+1 (5, 9, ..., 77, 81); the nearest are {below} and {below + 4}")
        return value

    @model_validator(mode="after")
    def _fill(self) -> "GenerateSettings":
        """Give fields that were left out the defaults of the family, the variant and the preset."""
        family, given = self.family, self.model_fields_set
        variant = family.variant(self.variant)
        values = {**family.defaults[variant], **family.presets[variant][self.preset]}
        # Not by assignment, which would count them as given.
        vars(self).update({name: value for name, value in values.items() if name not in given})
        return self

    @model_validator(mode="after")
    def _all_apply(self) -> "GenerateSettings":
        for name in sorted(self.family.foreign & self.model_fields_set) if self.model != "auto" else ():
            found, default = getattr(self, name), type(self).model_fields[name].default
            if found != default:
                raise ValueError(f"{name}: found {found!r}, but it does not apply to model {self.model}; leave it out")
        return self

    @model_validator(mode="after")
    def _guides_fit(self) -> "GenerateSettings":
        if self.clip_len <= self.refert_num:
            raise ValueError(
                f"clip_len {self.clip_len} leaves nothing to generate after refert_num {self.refert_num} frames; "
                f"use a clip_len of at least {self.refert_num + 4}"
            )
        return self
