"""The job folder: its key, its inputs, its `job.yaml`, and the clips that generation reads.

A folder `data/jobs/<key>/` is one job. It holds either ready clips (`src_pose.mp4`, `src_face.mp4`, `src_ref.png`,
for replacement also `src_bg.mp4` and `src_mask.mp4`) or raw inputs (a video `driving.<mp4|mov|...>` and a picture
`reference.<png|jpg|...>`, in upper or lower case). A `job.yaml` is optional; if it has `characters`, it names their
pictures instead. If the folder holds both, ready clips that are complete for the job's mode win, unless the model
family cannot use them. Other files are ignored. A job folder is only read.
"""

import hashlib
import os
import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator

from wan_orchestration.errors import BadInput, unknown_key, validate
from wan_orchestration.families.animate.family import CLIPS, REPLACEMENT_CLIPS
from wan_orchestration.families.choose import FIRST, configured
from wan_orchestration.families.family import Family
from wan_orchestration.files import check_file, sha256
from wan_orchestration.jobs.inputs import EXPECTED, EXPECTED_RAW, RAW, find_inputs
from wan_orchestration.settings.characters import MOST_CHARACTERS, Character, check_characters
from wan_orchestration.settings.checks import CheckSettings
from wan_orchestration.settings.environment import Environment, environment
from wan_orchestration.settings.generate import GenerateSettings, Mode, Model
from wan_orchestration.settings.preprocess import PreprocessSettings
from wan_orchestration.settings.variables import Settings, read_with_variables, with_variables

KEY = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")

KEY_PART = 24
"""The most letters that a key takes from one file name."""

JOB_FILE = "job.yaml"

JOB_FILE_BYTES = 1_000_000

GENERIC_NAMES = {name.replace("_", "-") for name in (*RAW, *CLIPS, *REPLACEMENT_CLIPS)}
"""File names that say nothing about the job, so keys leave them out."""


def check_key(key: str) -> str:
    """Returns `key` if it may name a job, as `[a-z0-9][a-z0-9._-]{0,62}`. BadInput: it may not."""
    if not KEY.fullmatch(key):
        raise BadInput(
            f"job key {key!r}: expected 1 to 63 of a-z, 0-9, '.', '_' and '-', the first a letter or digit; "
            "rename the job folder"
        )
    return key


def key_from(*files: str) -> str:
    """A key from the names of a job's files: `ada-dance` for `Ada.png` and `C:\\dance.mp4`; "" if none is usable."""
    parts = []
    for file in files:
        stem = PurePosixPath(file.replace("\\", "/")).stem
        letters = unicodedata.normalize("NFKD", stem.casefold()).encode("ascii", "ignore").decode()
        part = re.sub(r"[^a-z0-9]+", "-", letters).strip("-")[:KEY_PART].strip("-")
        if part not in ("", *parts, *GENERIC_NAMES):
            parts.append(part)
    return "-".join(parts)


class JobFile(BaseModel):
    """The content of `job.yaml`."""

    model_config = ConfigDict(extra="forbid")

    mode: Mode | None = Field(default=None, description="animate or replace, for preprocessing and generation.")
    priority: int = Field(default=0, description="Jobs of higher priority run first.")
    review: bool = Field(default=False, description="Make the clips, and wait for somebody to look at them.")
    preprocess: dict[str, Any] = Field(default={}, description="Fields of PreprocessSettings, without model and mode.")
    generate: dict[str, Any] = Field(default={}, description="Fields of GenerateSettings, without mode.")
    checks: dict[str, Any] = Field(default={}, description="Fields of CheckSettings.")
    model: Model | None = Field(default=None, description="The model family, for preprocessing and generation.")
    variant: str | None = Field(default=None, description="The model's checkpoint, as in generate.")
    characters: list[Character] = Field(
        default=[],
        max_length=MOST_CHARACTERS,
        description="Several characters, each with its person, who are replaced one after the other (mode replace).",
    )

    @field_validator("characters")
    @classmethod
    def _each_another_person(cls, value: list[Character]) -> list[Character]:
        check_characters(value)
        return value


@dataclass(frozen=True)
class Job:
    """One job folder with checked settings. `check_clips` checks the contents of ready clips."""

    key: str
    folder: Path
    file: JobFile
    kind: Literal["clips", "raw"]
    inputs: dict[str, Path]
    """Paths by name. For clips: src_pose, src_face, src_ref, and src_bg, src_mask if present. For raw: driving,
    reference, and keypoints, reference_keypoints, mask if present. Of further characters: reference_2, mask_2, ..."""
    weights: Family = FIRST
    """The family of the configured weights, which `model: auto` means if the job does not need another one."""

    @classmethod
    def open(
        cls, folder: Path, key: str | None = None, *, model: str | None = None, env: Environment | None = None
    ) -> "Job":
        """Reads a job folder.

        Args:
            folder: the job folder.
            key: the job's key, if it is not the folder's name.
            model: wins over the job's own `model` in the choice between ready clips and raw inputs.
            env: names the configured weights; default: this process's environment.

        BadInput: bad key, no such folder, inputs missing, ambiguous or of another kind, a broken link, an error in
        `job.yaml`.
        """
        folder = Path(folder).absolute()
        key = check_key(folder.name if key is None else key)
        if not folder.is_dir():
            raise BadInput(f"{folder}: no such job folder; expected a folder with {EXPECTED}")
        path = folder / JOB_FILE
        file, env, overrides = _read_job_file(path), env or environment(), {"model": model}
        generate = _read(GenerateSettings, path, file, overrides)
        preprocess = _read(PreprocessSettings, path, file, overrides)
        weights = configured(env.checkpoint_dir, env.model_id, env.download_folder)
        kind, inputs = find_inputs(folder, generate.mode, preprocess, file.characters, generate.family)
        job = cls(key, folder, file, kind, inputs, weights)
        job.generate_settings(**overrides)
        job._for_characters(job.all_preprocess_settings(**overrides)[0], {})
        job.check_settings()
        return job

    def family(self, **overrides: Any) -> Family:
        """The model family, by precedence: overrides, `job.yaml`, `WAN_DEFAULT_MODEL`, "auto".

        "auto" is the first family for ready clips, mode replace and characters, else that of the configured weights.

        `overrides`: settings that win over the job's; those other than `model` and `mode` do not matter here.

        BadInput: the family cannot do what the job asks for.
        """
        path, given = self.folder / JOB_FILE, {name: overrides.get(name) for name in ("model", "mode")}
        read = _read(GenerateSettings, path, self.file, given)
        if read.model == "auto":
            first = self.kind == "clips" or read.mode == "replace" or self.file.characters
            return FIRST if first else self.weights
        family, mode = read.family, given["mode"] or self.file.mode
        if "mode" not in family.foreign:
            return family
        found = f"{_name(path, 'generate', self.file, given)('model')}: found {family.name}"
        if self.file.characters or mode == "replace":
            what = "characters are for" if self.file.characters else "mode replace is for"
            raise BadInput(f"{found}, but {what} model {FIRST.name}; leave it out, or use model: {FIRST.name}")
        if self.kind == "clips":
            raise BadInput(
                f"{found}, but the job holds ready clips, which are for model {FIRST.name}; give {EXPECTED_RAW}, and "
                f"{family.name} in {JOB_FILE} if the folder holds both"
            )
        return family

    def generate_settings(self, **overrides: Any) -> GenerateSettings:
        """The job's settings, by precedence: overrides that are not None, `job.yaml`, `WAN_*` variables, defaults.

        Their `model` is never "auto". BadInput: an unknown field or a bad value.
        """
        settings = self._settings(GenerateSettings, overrides)
        self._check_characters(settings.mode)
        return settings

    def preprocess_settings(self, **overrides: Any) -> PreprocessSettings:
        """As `generate_settings`, for preprocessing. With `characters`, those of the first character."""
        return self.all_preprocess_settings(**overrides)[0]

    def other_characters(self, **overrides: Any) -> list[tuple[Path, PreprocessSettings]]:
        """Pictures of the characters after the first, and the settings for the person whom each replaces."""
        settings = self.all_preprocess_settings(**overrides)[1:]
        return [(self.inputs[f"reference_{number}"], one) for number, one in enumerate(settings, 2)]

    def all_preprocess_settings(self, **overrides: Any) -> list[PreprocessSettings]:
        """Those of each character; of a job without `characters`, the only ones."""
        settings = self._settings(PreprocessSettings, overrides)
        self._check_characters(settings.mode)
        found = self._for_characters(settings, overrides)
        for place, one in enumerate(self.file.characters):
            changes = {"person": one.person} | ({"mask_file": one.mask, "masks": "file"} if one.mask else {})
            found[place] = found[place].model_copy(update=changes)
        return found

    def _settings(self, kind: type[Settings], overrides: dict[str, Any]) -> Settings:
        path, family = self.folder / JOB_FILE, self.family(**overrides)
        block, given = _given(kind, path, self.file, overrides)
        return with_variables(kind, given, _name(path, block, self.file, overrides), family)

    def _for_characters(self, settings: PreprocessSettings, overrides: dict[str, Any]) -> list[PreprocessSettings]:
        try:
            return settings.for_characters(max(len(self.file.characters), 1))
        except ValueError as error:
            block = "" if overrides.get("mask_hints") else f"{self.folder / JOB_FILE}: preprocess."
            raise BadInput(f"{block}mask_hints: {error}") from None

    def _check_characters(self, mode: Mode) -> None:
        if self.file.characters and mode != "replace":
            raise BadInput(f"{self.folder / JOB_FILE}: characters: found mode {mode}, expected mode: replace")
        if self.file.characters and "person" in self.file.preprocess:
            raise BadInput(f"{self.folder / JOB_FILE}: preprocess.person: each of characters names its own person")

    def check_settings(self) -> CheckSettings:
        """Thresholds of the checks, by precedence: `job.yaml`, `WAN_CHECK_*` variables, defaults. BadInput."""
        return validate(CheckSettings, self.file.checks, lambda field: f"{self.folder / JOB_FILE}: checks.{field}")

    def fingerprint(self) -> str:
        """SHA-256 over the names and contents of the inputs, without the settings."""
        digest = hashlib.sha256()
        for path in sorted(file for place in self.inputs.values() for file in _files(place)):
            digest.update(f"{path.relative_to(self.folder).as_posix()}\0{sha256(path)}\n".encode())
        return digest.hexdigest()


def _files(place: Path) -> Iterator[Path]:
    if place.is_dir():
        yield from (path for path in place.rglob("*") if path.is_file())
    else:
        yield place


def _read_job_file(path: Path) -> JobFile:
    if not os.path.lexists(path):
        return JobFile()
    check_file(path)
    if path.stat().st_size > JOB_FILE_BYTES:
        raise BadInput(f"{path}: {path.stat().st_size} bytes, expected a short YAML file of at most 1 MB")
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if content is None:
        return JobFile()
    if not isinstance(content, dict):
        raise BadInput(
            f"{path}: found a {type(content).__name__}, expected a mapping with {', '.join(JobFile.model_fields)}"
        )
    return validate(JobFile, content, lambda field: f"{path}: {field}")


def _read(kind: type[Settings], path: Path, file: JobFile, overrides: dict[str, Any]) -> Settings:
    """Settings before the family is known."""
    block, given = _given(kind, path, file, overrides)
    return read_with_variables(kind, given, _name(path, block, file, overrides))


def _given(kind: type[Settings], path: Path, file: JobFile, overrides: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The name of the block in `job.yaml`, and the settings that the file or the overrides give."""
    block, values = ("generate", file.generate) if kind is GenerateSettings else ("preprocess", file.preprocess)
    top: dict[str, Any] = {"mode": file.mode, "model": file.model}
    either = {"model", "variant"} & values.keys() if block == "generate" else set()
    for field in sorted(either):
        found = getattr(file, field)
        if found is not None and found != values[field]:
            raise BadInput(
                f"{path}: generate.{field}: found {values[field]!r}, but {field} at the top of the file is "
                f"{found!r}; leave out one of them"
            )
    if block == "generate":
        top["variant"] = file.variant
    else:
        top["model"] = top["model"] or file.generate.get("model")
    for field in top:
        if field in values and field not in either:
            known = [one for one in kind.model_fields if one not in top]
            raise unknown_key(f"{path}: {block}.{field} ({field} belongs at the top of the file)", field, known)
    given = {field: value for field, value in top.items() if value is not None} | values
    return block, given | {field: value for field, value in overrides.items() if value is not None}


def _name(path: Path, block: str, file: JobFile, overrides: dict[str, Any]) -> Callable[[str], str]:
    """The names of settings as a user knows them."""

    def name(field: str) -> str:
        if overrides.get(field.split(".")[0]) is not None:
            return field
        if field == "mode" or (field in ("model", "variant") and field not in file.generate):
            return f"{path}: {field}"
        return f"{path}: {'generate' if field == 'model' else block}.{field}".rstrip(".")

    return name
