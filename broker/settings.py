"""The only reader of the environment: every setting of the broker, read and checked once.

The first six names are those of the source documents; ours begin with `REELBROKER_`. See `.env.example`.
"""

from typing import Annotated

from pydantic import AfterValidator, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

HttpUrl = Annotated[
    str, Field(pattern=r"^https?://[^/\s]+(/\S*)?$"), AfterValidator(lambda url: url.rstrip("/"))
]


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_file=".env", extra="ignore", frozen=True)

    runpod_api_key: SecretStr = Field(validation_alias="RUNPOD_API_KEY")
    runpod_endpoint_url: HttpUrl = Field(validation_alias="RUNPOD_ENDPOINT_URL")
    r2_endpoint: HttpUrl = Field(validation_alias="R2_ENDPOINT")
    r2_access_key_id: str = Field(validation_alias="R2_ACCESS_KEY_ID")
    r2_secret_access_key: SecretStr = Field(validation_alias="R2_SECRET_ACCESS_KEY")
    r2_bucket_name: str = Field(validation_alias="R2_BUCKET_NAME")

    api_key: SecretStr = Field(validation_alias="REELBROKER_API_KEY", min_length=16)
    user_id: str = Field("local", validation_alias="REELBROKER_USER_ID", pattern=r"^[A-Za-z0-9_-]{1,64}$")
    database_url: str = Field("sqlite:///reelbroker.db", validation_alias="REELBROKER_DATABASE_URL")
    host: str = Field("127.0.0.1", validation_alias="REELBROKER_HOST")
    port: int = Field(8000, validation_alias="REELBROKER_PORT", ge=0, le=65535)

    #: Where the provider reaches the broker, for its webhook; without it, jobs are only polled.
    public_url: HttpUrl | None = Field(None, validation_alias="REELBROKER_PUBLIC_URL")
    #: RunPod takes 200 a second of `/status`, 100 of `/run`, 10 of `/cancel`.
    calls_per_second: float = Field(50, validation_alias="REELBROKER_RUNPOD_CALLS_PER_SECOND", gt=0, le=1000)
    #: For the cost of orphaned runs.
    gpu_usd_per_second: float | None = Field(None, validation_alias="REELBROKER_GPU_USD_PER_SECOND", ge=0)

    max_attempts: int = Field(3, validation_alias="REELBROKER_MAX_ATTEMPTS", ge=1, le=10)
    body_limit_bytes: int = Field(1_048_576, validation_alias="REELBROKER_BODY_LIMIT_BYTES", ge=1024)
    #: The longest that any job may run once a worker has it; how long one may is computed (policy.py).
    execution_timeout_seconds: int = Field(
        7200, validation_alias="REELBROKER_EXECUTION_TIMEOUT_SECONDS", ge=5, le=604_800
    )
    #: How long a job may wait for a worker. RunPod counts its ttl from the submit, so ttl = this + execution.
    queue_timeout_seconds: int = Field(86_400, validation_alias="REELBROKER_QUEUE_TIMEOUT_SECONDS", ge=10)
    #: After a submit with an unknown end, how long to look for signs of it before it is superseded.
    submit_grace_seconds: float = Field(600, validation_alias="REELBROKER_SUBMIT_GRACE_SECONDS", gt=0)
    #: How long the provider must keep saying "no such job" before the attempt counts as lost.
    lost_after_seconds: float = Field(30, validation_alias="REELBROKER_LOST_AFTER_SECONDS", gt=0)
    #: How long a cancel waits for the provider's word before the job ends as cancelled on `stop.json` alone.
    cancel_grace_seconds: float = Field(60, validation_alias="REELBROKER_CANCEL_GRACE_SECONDS", gt=0)
    #: A worker that tells nothing new for so long may be stuck; the job says so and goes on.
    stalled_after_seconds: float = Field(300, validation_alias="REELBROKER_STALLED_AFTER_SECONDS", gt=0)
    #: How long control documents and unpublished outputs of ended jobs stay in the bucket.
    keep_documents_days: float = Field(7, validation_alias="REELBROKER_KEEP_DOCUMENTS_DAYS", gt=0)
    #: How long an upload may lie there without any job that names it.
    keep_uploads_days: float = Field(7, validation_alias="REELBROKER_KEEP_UPLOADS_DAYS", gt=0)
    url_lifetime_seconds: int = Field(
        3600, validation_alias="REELBROKER_URL_LIFETIME_SECONDS", ge=60, le=604_800
    )
