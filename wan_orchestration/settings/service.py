"""Settings of the services: the API and its clients, the drop folder, batches, webhooks."""

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class ApiSettings(BaseSettings):
    """How the HTTP API behaves, from `WAN_API_*` variables. Lists are JSON."""

    model_config = SettingsConfigDict(env_prefix="WAN_API_")

    token: SecretStr | None = Field(
        default=None,
        min_length=16,
        description="Secret that clients must send as a bearer token. Without it, the server answers only connections "
        "to this machine's loopback address.",
    )
    hosts: list[str] = Field(
        default=[],
        description="Host names by which clients may call the server, besides localhost and IP addresses.",
    )
    cors_origins: list[str] = Field(
        default=[], description="Origins of other sites whose pages may call the API, such as https://studio.example."
    )
    max_upload_mb: int = Field(default=2048, ge=1, description="Largest upload in MB, all files together.")
    max_video_seconds: float = Field(default=600, gt=0, description="Longest driving video or clip, seconds.")
    max_video_pixels: int = Field(
        default=4096 * 2304, ge=1, description="Most pixels in a frame of a driving video or clip."
    )
    max_queued: int = Field(default=500, ge=1, description="Jobs that may wait in the queue; more are refused.")
    max_streams: int = Field(default=100, ge=1, description="Connections that may receive events at once.")
    webhook_hosts: list[str] = Field(
        default=[], description="Hosts (name or name:port) to which webhooks may be sent; none: no webhooks."
    )
    webhook_secret: SecretStr | None = Field(
        default=None, min_length=16, description="Key that signs webhooks, see docs/api.md; webhooks need it."
    )


class PriceSettings(BaseSettings):
    """What computing costs, from `WAN_PRICE_*` variables."""

    model_config = SettingsConfigDict(env_prefix="WAN_PRICE_")

    per_hour: float | None = Field(
        default=None,
        ge=0,
        allow_inf_nan=False,
        description="Money for an hour of a device, in any currency. With it, estimates name a price.",
    )


class ClientSettings(BaseSettings):
    """The server of the client commands, from `WAN_API_*` variables."""

    model_config = SettingsConfigDict(env_prefix="WAN_API_")

    url: str = Field(default="http://127.0.0.1:8000", description="The server's URL.")
    token: SecretStr | None = Field(default=None, description="The server's token.")


class DropSettings(BaseSettings):
    """The drop folder, from `WAN_DROP_*` variables."""

    model_config = SettingsConfigDict(env_prefix="WAN_DROP_")

    settle_seconds: float = Field(
        default=10.0, ge=0, description="A job starts when its folder has not changed for so many seconds."
    )
    interval_seconds: int = Field(default=5, ge=1, description="Seconds between two scans of the drop folder.")
    run: bool = Field(
        default=True,
        description="Start runs for new and changed jobs; false: they only become partitions, or stale.",
    )
    max_runs_per_tick: int = Field(
        default=4, ge=1, description="Most runs that one scan starts; the next scan starts more."
    )
    max_jobs_per_run: int = Field(
        default=8,
        ge=1,
        description="Most jobs in one run, which loads the weights once. Jobs that arrive together share a run.",
    )


class BatchSettings(BaseSettings):
    """Batches of all jobs whose videos are missing or out of date, from `WAN_BATCH_*` variables."""

    model_config = SettingsConfigDict(env_prefix="WAN_BATCH_")

    nightly: bool = Field(default=False, description="Turn on the nightly_batch schedule, without a click in the UI.")
    cron: str = Field(default="0 1 * * *", description="When nightly_batch runs.")
    timezone: str = Field(default="UTC", description="Time zone of the cron expression, for instance Europe/Berlin.")
    max_jobs_per_run: int = Field(default=32, ge=1, description="Most jobs in one run, which loads the weights once.")


class FailureWebhookSettings(BaseSettings):
    """The webhook that reports failed runs, from `WAN_FAILURE_WEBHOOK_*` variables."""

    model_config = SettingsConfigDict(env_prefix="WAN_FAILURE_WEBHOOK_")

    url: SecretStr | None = Field(
        default=None,
        description="URL that receives JSON about each failed run; none: nothing is sent. May hold a secret.",
    )
    tries: int = Field(
        default=4, ge=1, le=8, description="Most attempts to send; the pauses between them double from one second."
    )
    timeout_seconds: float = Field(default=10.0, gt=0, description="Longest time for an answer, seconds.")
