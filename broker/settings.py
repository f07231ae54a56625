"""The settings of the broker. Only this module reads the environment, once, and validates it.

The providers' and R2's settings keep their usual names. The others begin with `REELBROKER_`. See
`.env.example`.
"""

import importlib.util
import ipaddress
import re
from dataclasses import dataclass
from typing import Annotated, Any, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

HttpUrl = Annotated[
    str, Field(pattern=r"^https?://[^/\s]+(/\S*)?$"), AfterValidator(lambda url: url.rstrip("/"))
]
Price = Annotated[float, Field(ge=0)]


def _split(value: Any) -> Any:
    return (
        [word.strip() for word in value.split(",") if word.strip()]
        if isinstance(value, str)
        else value
    )


#: The first segments of the broker's own paths (api/routes.py).
OWN_PATHS = {"api", "docs", "healthz", "hooks", "metrics", "openapi.json", "readyz", "web", "ws"}


def _root_path(value: str) -> str:
    path = value.rstrip("/")
    if not re.fullmatch(r"(/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)*", path):
        raise ValueError("a path like /reelbroker, or nothing")
    if path.split("/")[1:2] and path.split("/")[1] in OWN_PATHS:
        raise ValueError(f"{path} begins like one of the broker's own paths: choose another")
    return path


RootPath = Annotated[str, AfterValidator(_root_path)]


def _database(value: str) -> str:
    try:
        known = make_url(value).get_backend_name() in ("sqlite", "postgresql")
    except (ArgumentError, ValueError):
        known = False
    if not known:
        raise ValueError(
            "a URL like sqlite:///reelbroker.db or postgresql://user:password@host/database"
        )
    return value


#: Settings that begin so have their usual names.
_USUAL = ("runpod_", "r2_", "modal_enabled", "modal_token", "modal_environment")
#: What each provider needs; a setting may come from the entry in REELBROKER_PROVIDERS instead.
_NEEDED = {
    "runpod": ("runpod_api_key", "runpod_endpoint_url"),
    "modal": ("modal_token_id", "modal_token_secret"),
}


def variable(field: str) -> str:
    """Returns the environment variable of a setting; other words as they are."""
    if field not in Settings.model_fields:
        return field
    return str(Settings.model_fields[field].validation_alias)


def _variable(field: str) -> str:
    return ("" if field.startswith(_USUAL) else "REELBROKER_") + field.upper()


@dataclass(frozen=True)
class ProviderEntry:
    """A provider that new attempts may go to, and a target beside the one of its own settings."""

    name: str
    target: str | None = None


def _entry(text: str) -> ProviderEntry:
    name, _, target = text.partition("=")
    forms = {"runpod": r"https?://\S+", "modal": r"[\w.-]+/[\w.-]+/[\w.-]+"}
    if name not in forms:
        raise ValueError(f"{name!r} is no provider: choose among {', '.join(forms)}")
    if target and not re.fullmatch(forms[name], target):
        raise ValueError(f"{text}: runpod=https://… or modal=ENVIRONMENT/APP/FUNCTION")
    return ProviderEntry(name, target.rstrip("/") or None)


def _entries(value: Any) -> Any:
    if isinstance(value, str):
        entries = tuple(_entry(text) for text in _split(value))
        if len(set(entries)) < len(entries):
            raise ValueError("each provider once, or several times with different targets")
        return entries
    return value


def _chosen(
    entries: tuple[ProviderEntry, ...], modal_enabled: bool, has_runpod: bool
) -> tuple[ProviderEntry, ...]:
    if entries:
        return entries
    runpod, modal = ProviderEntry("runpod"), ProviderEntry("modal")
    if not modal_enabled:
        return (runpod,)
    return (modal, runpod) if has_runpod else (modal,)


class Settings(BaseSettings):
    model_config = SettingsConfigDict(
        env_file=".env", extra="ignore", frozen=True, alias_generator=_variable
    )

    #: Where new attempts go, the preferred one first: `runpod,modal`, and `runpod=URL` for more
    #: endpoints of one account. By default, Modal where it is enabled; then RunPod.
    providers: Annotated[
        tuple[ProviderEntry, ...], NoDecode, BeforeValidator(_entries), Field(validate_default=True)
    ] = ()
    modal_enabled: bool = False
    modal_environment: str = Field("main", pattern=r"^[\w.-]{1,64}$")
    modal_app: str = Field("reelbroker", pattern=r"^[\w.-]{1,64}$")
    modal_function: str = Field("export", pattern=r"^[\w.-]{1,64}$")
    #: A provider that is no longer among `providers` still needs these for its open attempts.
    modal_token_id: str | None = Field(None, validate_default=True)
    modal_token_secret: SecretStr | None = Field(None, validate_default=True)
    runpod_api_key: SecretStr | None = Field(None, validate_default=True)
    runpod_endpoint_url: HttpUrl | None = Field(None, validate_default=True)
    r2_endpoint: HttpUrl
    r2_access_key_id: str
    r2_secret_access_key: SecretStr
    r2_bucket_name: str

    #: The operator's key, for the user `user_id` as an admin. `reelbroker keys create` adds keys.
    api_key: SecretStr | None = Field(None, min_length=16)
    #: A key for `GET /metrics` alone, for Prometheus.
    metrics_key: SecretStr | None = Field(None, min_length=16)
    user_id: str = Field("local", pattern=r"^[A-Za-z0-9_-]{1,64}$")
    database_url: Annotated[str, AfterValidator(_database)] = "sqlite:///reelbroker.db"
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    #: The path under which a proxy serves the broker, such as `/reelbroker`. Empty for none.
    root_path: RootPath = ""

    #: Tokens of an identity provider: HS256 with a secret, RS256 and ES256 with the keys at a URL.
    jwt_secret: SecretStr | None = Field(None, min_length=32)
    jwt_jwks_url: HttpUrl | None = None
    jwt_audience: str | None = None
    jwt_issuer: str | None = None
    jwt_user_claim: str = "sub"
    #: Web pages of these origins may call the broker and, after `storage setup`, the bucket.
    cors_origins: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)] = ()

    requests_per_minute: int = Field(60_000, ge=1)
    max_open_jobs: int = Field(1000, ge=1)
    media_seconds_per_day: float | None = Field(None, gt=0)
    max_upload_bytes: int = Field(32 * 2**30, ge=1)
    #: The deadline for a request's body. A file in a form may take longer as long as data arrives.
    body_seconds: float = Field(30, gt=0)
    min_free_bytes: int = Field(256 * 2**20, ge=0)
    #: For tests and closed networks only. By default, webhooks need https and a public address.
    webhooks_to_private: bool = Field(
        False, validation_alias="REELBROKER_WEBHOOKS_TO_PRIVATE_ADDRESSES"
    )

    #: The broker's address for the provider's webhook. Without one, the broker only polls.
    public_url: HttpUrl | None = None
    #: The calls to each of `/run`, `/status` and `/health`; `/cancel` gets 0.18 of them. RunPod
    #: accepts 100, 200 and 10 cancels a second, and more for an endpoint with many workers.
    calls_per_second: float = Field(
        50, validation_alias="REELBROKER_RUNPOD_CALLS_PER_SECOND", gt=0, le=1000
    )
    #: USD a second by the GPU's CUDA name; `*` for others: `{"NVIDIA L4": 0.00019, "*": 0.0003}`.
    #: A provider's own price goes first: `{"modal:NVIDIA L4": 0.00031, "modal:*": 0.0005}`.
    gpu_prices: dict[str, Price] = {}

    max_attempts: int = Field(3, ge=1, le=10)
    body_limit_bytes: int = Field(1_048_576, ge=1024)
    #: The longest run of any job on a worker. policy.py computes the limit of each job.
    execution_timeout_seconds: int = Field(7200, ge=5, le=604_800)
    #: How long an attempt may wait for a worker. RunPod's ttl is this plus the execution timeout.
    queue_timeout_seconds: int = Field(86_400, ge=10)
    #: How long the broker waits for signs of a submit with an unknown result before a new attempt.
    submit_grace_seconds: float = Field(600, gt=0)
    #: How long the provider must answer "no such job" before the attempt counts as lost.
    lost_after_seconds: float = Field(30, gt=0)
    #: How long a provider may be out of reach before its jobs go to the next one of `providers`.
    unreachable_after_seconds: float = Field(300, gt=0)
    #: How long a cancel waits for the provider's answer. Then the job ends on `stop.json` alone.
    cancel_grace_seconds: float = Field(60, gt=0)
    #: After this time without progress a job is marked as stalled. The job goes on.
    stalled_after_seconds: float = Field(300, gt=0)
    #: How long the bucket keeps control documents and unpublished outputs of ended jobs.
    keep_documents_days: float = Field(7, gt=0)
    #: How long the bucket keeps an upload that no job uses.
    keep_uploads_days: float = Field(7, gt=0)
    url_lifetime_seconds: int = Field(3600, ge=60, le=604_800)

    @field_validator(*[name for names in _NEEDED.values() for name in names])
    @classmethod
    def _check_provider(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuses a missing setting of a provider that new attempts go to."""
        if value is not None or "providers" not in info.data or "modal_enabled" not in info.data:
            return value
        name = next(one for one, needed in _NEEDED.items() if info.field_name in needed)
        entries = _chosen(info.data["providers"], info.data["modal_enabled"], has_runpod=False)
        targets = [entry.target for entry in entries if entry.name == name]
        if targets and (info.field_name != "runpod_endpoint_url" or None in targets):
            raise ValueError(f"required, because {name} is among the providers")
        return value

    @model_validator(mode="after")
    def _check_modal(self) -> Self:
        if self.modal_token_id and importlib.util.find_spec("modal") is None:
            raise ValueError(
                "MODAL_TOKEN_ID is set, and the package modal is not installed: pip install "
                "'reelbroker[modal]'"
            )
        return self

    @property
    def provider_entries(self) -> tuple[ProviderEntry, ...]:
        """Where new attempts go, the preferred one first."""
        has_runpod = bool(self.runpod_api_key and self.runpod_endpoint_url)
        return _chosen(self.providers, self.modal_enabled, has_runpod)

    @model_validator(mode="after")
    def _check_exposure(self) -> Self:
        if not self.has_auth and not self.is_local:
            raise ValueError(
                f"REELBROKER_HOST={self.host} is reachable from other machines: set"
                " REELBROKER_API_KEY, REELBROKER_JWT_SECRET or REELBROKER_JWT_JWKS_URL"
            )
        return self

    @property
    def has_auth(self) -> bool:
        """Whether requests need a key or a token. Without, every local user may send requests."""
        return bool(self.api_key or self.jwt_secret or self.jwt_jwks_url)

    @property
    def page_origins(self) -> tuple[str, ...]:
        """The origins whose pages may use the bucket: the settings' and the broker's own."""
        here = [f"http://{name}:{self.port}" for name in dict.fromkeys((self.host, "localhost"))]
        own = [urlsplit(url) for url in ([self.public_url] if self.public_url else here)]
        return (*self.cors_origins, *(f"{url.scheme}://{url.netloc}" for url in own))

    @property
    def is_local(self) -> bool:
        """Whether the broker listens only on this machine's loopback."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"
