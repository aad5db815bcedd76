"""How the services behave: the API and its clients, the drop folder, batches, webhooks, checks."""

from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


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
