"""A job as clients see it: the request, the view, and the closed lists of words that both sides use."""

from enum import StrEnum
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    Strict,
    StringConstraints,
    model_validator,
)
from pydantic_core import PydanticCustomError

from schemas.edits import FramingParams


class JobType(StrEnum):
    FRAMING = "framing"


class JobStatus(StrEnum):
    PENDING = "pending"  #: accepted and stored, not yet at the provider
    PROCESSING = "processing"  #: the provider has it, or may have it
    COMPLETE = "complete"  #: the output was seen in the bucket
    ERROR = "error"
    CANCELLED = "cancelled"

    @property
    def is_terminal(self) -> bool:
        return self in (JobStatus.COMPLETE, JobStatus.ERROR, JobStatus.CANCELLED)


class Phase(StrEnum):
    """Detail under the status, in the order in which a job goes through them."""

    ACCEPTED = "accepted"
    SUBMITTING = "submitting"
    QUEUED = "queued"
    STARTING = "starting"
    DOWNLOADING = "downloading"
    PROCESSING = "processing"
    UPLOADING = "uploading"
    VERIFYING = "verifying"
    DONE = "done"


class ErrorCode(StrEnum):
    """Why a job ended in `error`, or a request was refused; `retryable` says whether the same again may succeed."""

    INVALID_PARAMS = "invalid_params"
    SOURCE_NOT_FOUND = "source_not_found"
    INVALID_MEDIA = "invalid_media"
    UNSUPPORTED_MEDIA = "unsupported_media"
    MEDIA_TOO_LARGE = "media_too_large"
    MODEL_UNAVAILABLE = "model_unavailable"
    OUT_OF_MEMORY = "out_of_memory"
    EXECUTION_TIMEOUT = "execution_timeout"
    QUEUE_TIMEOUT = "queue_timeout"
    WORKER_LOST = "worker_lost"
    RESULT_LOST = "result_lost"
    STORAGE_UNAVAILABLE = "storage_unavailable"
    PROVIDER_UNAVAILABLE = "provider_unavailable"
    PROVIDER_REFUSED = "provider_refused"
    CANCELLED = "cancelled"
    INTERNAL = "internal"

    @property
    def retryable(self) -> bool:
        return self in _RETRYABLE


_RETRYABLE = {
    ErrorCode.OUT_OF_MEMORY,
    ErrorCode.QUEUE_TIMEOUT,
    ErrorCode.WORKER_LOST,
    ErrorCode.RESULT_LOST,
    ErrorCode.STORAGE_UNAVAILABLE,
    ErrorCode.PROVIDER_UNAVAILABLE,
    ErrorCode.INTERNAL,
}


def _confined(key: str) -> str:
    if key.startswith("/") or any(part in ("", ".", "..") for part in key.split("/")):
        raise PydanticCustomError(
            "key", "a key is relative to your folder: no leading `/`, no empty, `.` or `..` part"
        )
    return key


#: A key below the user's folder; the object's key is `{user_id}/{key}`.
ObjectKey = Annotated[
    str,
    StringConstraints(min_length=1, max_length=512, pattern=r"^[^\x00-\x1f\x7f\\]+$"),
    AfterValidator(_confined),
]
UserId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
SafeInt = Annotated[int, Strict(), Field(ge=0, le=2**53 - 1)]


class Wire(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class JobRequest(Wire):
    """The body of `POST /api/jobs`. `input_video_key` is another spelling of `input_key`."""

    type: JobType
    input_key: ObjectKey
    params: FramingParams = FramingParams()
    project_id: SafeInt | None = None
    game_id: SafeInt | None = None
    metadata: Annotated[dict[str, str], Field(max_length=32)] = {}

    @model_validator(mode="before")
    @classmethod
    def _normalise_names(cls, raw: Any) -> Any:
        if not isinstance(raw, dict) or "input_video_key" not in raw or "input_key" in raw:
            return raw
        return {("input_key" if key == "input_video_key" else key): value for key, value in raw.items()}


class OutputFacts(Wire):
    """What was measured on the finished file itself, not what was asked for."""

    bytes: Annotated[int, Field(gt=0)]
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    width: int
    height: int
    fps: float
    frames: Annotated[int, Field(gt=0)]
    duration_seconds: float
    video_codec: str
    audio_codec: str | None


class Evidence(Wire):
    """The last thing seen that says where the job is, and when (ISO 8601)."""

    source: str
    at: str


class JobUrls(Wire):
    self: str
    cancel: str
    output: str | None


class JobView(Wire):
    """A job as every route shows it. `output_key` and `result` are null until the output was seen in the bucket."""

    job_id: str
    type: JobType
    status: JobStatus
    phase: Phase
    progress: Annotated[int, Field(ge=0, le=100)]
    message: str
    input_key: str
    output_key: str | None
    error: str | None
    error_code: ErrorCode | None
    retryable: bool
    attempt: int
    max_attempts: int
    runpod_job_id: str | None
    project_id: int | None
    game_id: int | None
    metadata: dict[str, str]
    params: JsonValue
    created_at: str
    started_at: str | None
    completed_at: str | None
    cancel_requested_at: str | None
    result: OutputFacts | None
    gpu_seconds: float | None
    last_evidence: Evidence | None
    urls: JobUrls


class JobList(Wire):
    jobs: list[JobView]
    next_cursor: str | None


class UploadRequest(Wire):
    """The body of `POST /api/videos/upload-url`."""

    filename: Annotated[
        str, StringConstraints(min_length=1, max_length=255, pattern=r"^[^\x00-\x1f\x7f/\\]+$")
    ]
    content_type: Annotated[str, StringConstraints(pattern=r"^video/[a-z0-9.+-]{1,64}$")] = "video/mp4"
    job_id: str | None = None  # sent by older clients; the key that we answer with is what matters


class UploadTicket(Wire):
    """Where and how to PUT the file; afterwards name `video_key` as the job's `input_key`."""

    upload_url: str
    method: str
    headers: dict[str, str]
    video_key: str
    expires_in_seconds: int
