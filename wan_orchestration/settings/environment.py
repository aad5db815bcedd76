"""Environment variables: folders and processes (`WAN_*`), this process's rank (set by torchrun), Dagster's home."""

import os
from functools import cache
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class Environment(BaseSettings):
    """Where files are and how processes run, from `WAN_*` variables."""

    model_config = SettingsConfigDict(env_prefix="WAN_", protected_namespaces=())

    data_root: Path = Field(
        default=Path("data"),
        description="Folder of jobs, models, clips and videos; a relative path starts at the working directory.",
    )
    checkpoint_dir: Path | None = Field(
        default=None,
        description="Folder of a snapshot, in the original or the Diffusers layout; its model family is then not "
        "downloaded.",
    )
    models_root: Path | None = Field(
        default=None, description="Folder that snapshots are downloaded to; default: DATA_ROOT/models."
    )
    cache_root: Path | None = Field(
        default=None,
        description="Cache of prompt embeddings and compiled kernels for later launches; default: MODELS_ROOT/.cache. "
        "Safe to delete.",
    )
    model_id: str = Field(
        default="Wan-AI/Wan2.2-Animate-14B",
        description="ModelScope repository of the weights, and of the family that model: auto means.",
    )
    model_revision: str = Field(default="master", description="Revision (branch, tag or commit) of the repository.")
    model_endpoint: str | None = Field(
        default=None, description="URL of a ModelScope-compatible hub; default: the modelscope client's."
    )
    enable_sequence_parallel: bool | None = Field(
        default=None, description="Split each segment over the ranks; default: on if torchrun started more than one."
    )
    enable_fsdp: bool = Field(default=False, description="Shard the transformer over the ranks.")
    launcher: Literal["torchrun", "slurm"] = Field(
        default="torchrun",
        description="Where videos are generated. torchrun: on this machine; slurm: on a cluster. "
        "`WAN_TORCHRUN_<FIELD>` and `WAN_SLURM_<FIELD>` configure them.",
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
    def download_folder(self) -> Path:
        """Where the snapshot of `model_id` is downloaded to."""
        assert self.models_root is not None
        return self.models_root / self.model_id.replace("/", "--") / quote(self.model_revision, safe="")

    @property
    def jobs_root(self) -> Path:
        return self.data_root / "jobs"

    @property
    def clips_root(self) -> Path:
        return self.data_root / "clips"

    @property
    def previews_root(self) -> Path:
        """Clips of the first seconds, while a run makes the whole clips."""
        return self.data_root / "clips-preview"

    @property
    def videos_root(self) -> Path:
        return self.data_root / "videos"

    @property
    def progress_root(self) -> Path:
        return self.data_root / "progress"


class World(BaseSettings):
    """This process's rank. torchrun sets all variables except `wan_leases` and `wan_launch`."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    wan_leases: str = ""
    """Lock files of the devices that a Dagster step leased for this process, separated as in PATH."""
    wan_launch: Path | None = None
    """Folder of the launch: its socket and stacks."""

    @property
    def leases(self) -> list[Path]:
        return [Path(file) for file in self.wan_leases.split(os.pathsep) if file]


class GpuEnvironment(BaseSettings):
    """Which GPUs this process may use, from the variables of the `gpus` resource."""

    model_config = SettingsConfigDict(env_prefix="WAN_GPUS_")

    devices: str = "all"
    lease_folder: str | None = None


class DagsterHome(BaseSettings):
    """Folder of the Dagster instance, from `DAGSTER_HOME`."""

    model_config = SettingsConfigDict(env_prefix="DAGSTER_")

    home: Path = Path("dagster_home")


@cache
def environment() -> Environment:
    """This process's `Environment`, read on the first call and cached."""
    return Environment()
