"""A job as clients see it: the request, the view, and the closed lists of words that both sides
use.
"""

from enum import StrEnum
from typing import Annotated, Any, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    SerializeAsAny,
    SkipValidation,
    Strict,
    StringConstraints,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from schemas.edits import FramingParams, MultiClipParams, OutputParams, UpscaleParams
from schemas.keys import ObjectKey
from schemas.overlays import AnnotateParams, OverlayParams


class JobType(StrEnum):
    FRAMING = "framing"  #: an animated crop
    OVERLAY = "overlay"  #: highlights and text on the picture
    ANNOTATE = "annotate"  #: captioned clips of one long video, joined
    MULTI_CLIP = "multi_clip"  #: clips of several videos, joined
    UPSCALE = "upscale"  #: framing through a model of the client's choice

    @property
    def params_model(self) -> type[OutputParams]:
        """The model of the type's params."""
        return _PARAMS[self]


_PARAMS: dict[JobType, type[OutputParams]] = {
    JobType.FRAMING: FramingParams,
    JobType.OVERLAY: OverlayParams,
    JobType.ANNOTATE: AnnotateParams,
    JobType.MULTI_CLIP: MultiClipParams,
    JobType.UPSCALE: UpscaleParams,
}


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
    """Why a job ended in `error`, or a request was refused; `retryable` states whether the same
    again may succeed.
    """

    INVALID_PARAMS = "invalid_params"
    SOURCE_NOT_FOUND = "source_not_found"
    INVALID_MEDIA = "invalid_media"
    UNSUPPORTED_MEDIA = "unsupported_media"
    FILE_TOO_LARGE = "file_too_large"
    MEDIA_TOO_LARGE = "media_too_large"  #: too many pixels
    MEDIA_TOO_LONG = "media_too_long"
    TOO_MANY_STREAMS = "too_many_streams"
    OUTPUT_TOO_LARGE = "output_too_large"
    OUTPUT_TOO_LONG = "output_too_long"
    CPU_TIMEOUT = "cpu_timeout"
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


SafeInt = Annotated[int, Strict(), Field(ge=0, le=2**53 - 1)]


class Wire(BaseModel):
    # Answers have all their fields, also those with a default.
    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        json_schema_serialization_defaults_required=True,
    )


def _no_params() -> Any:
    return {}


class Edited(Wire):
    """An edit of a video: what a client asks of the broker, and the broker of the worker."""

    type: JobType
    #: Left out only by a `multi_clip` whose clips all name their own.
    input_key: Annotated[ObjectKey | None, Field(validate_default=True)] = None
    params: Annotated[
        SerializeAsAny[OutputParams], Field(default_factory=_no_params, validate_default=True)
    ]

    @field_validator("params", mode="plain")
    @classmethod
    def _params_of_the_type(cls, raw: Any, info: ValidationInfo) -> Any:
        """Reads the params as those of the type; with an unknown type, only the type is complained
        of.
        """
        job_type = info.data.get("type")
        return raw if job_type is None else job_type.params_model.model_validate(raw)

    @property
    def video_keys(self) -> list[str]:
        """Returns the keys of all videos that the edit is made of, each once."""
        keys = [self.input_key]
        if isinstance(self.params, MultiClipParams):
            keys = [clip.input_key or self.input_key for clip in self.params.clips]
        return list(dict.fromkeys(key for key in keys if key is not None))

    @model_validator(mode="after")
    def _knows_its_input(self) -> Self:
        complete = isinstance(self.params, MultiClipParams) and all(
            c.input_key for c in self.params.clips
        )
        if self.input_key is None and not complete:
            raise PydanticCustomError("missing", "Field required", {"at": ["input_key"]})
        return self


class JobRequest(Edited):
    """The body of `POST /api/jobs`. `input_video_key` is another spelling of `input_key`."""

    project_id: SafeInt | None = None
    game_id: SafeInt | None = None
    metadata: Annotated[dict[str, str], Field(max_length=32)] = {}

    @model_validator(mode="before")
    @classmethod
    def _normalise_names(cls, raw: Any) -> Any:
        if not isinstance(raw, dict) or "input_video_key" not in raw or "input_key" in raw:
            return raw
        return {
            ("input_key" if key == "input_video_key" else key): value for key, value in raw.items()
        }


class OutputFacts(Wire):
    """What was measured on the finished file, not what was requested."""

    bytes: Annotated[int, Field(gt=0)]
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    width: int
    height: int
    fps: float
    frames: Annotated[int, Field(gt=0)]
    duration_seconds: float
    video_codec: str
    audio_codec: str | None
    #: What is lost of the sources, by sentences: sound that cannot be decoded.
    warnings: tuple[str, ...] = ()


class Evidence(Wire):
    """The last observation that placed the job, and its time (ISO 8601)."""

    source: str
    at: str


class JobUrls(Wire):
    """Paths on this broker; `output` is null until the job is complete."""

    self: str
    events: str
    ws: str
    cancel: str
    retry: str
    output: str | None


class JobView(Wire):
    """A job as every route shows it. `output_key` and `result` are null until the output was seen
    in the bucket.
    """

    job_id: str
    type: JobType
    status: JobStatus
    phase: Phase
    progress: Annotated[int, Field(ge=0, le=100)]
    message: str
    input_key: str | None
    output_key: str | None
    error: str | None
    error_code: ErrorCode | None
    retryable: bool
    stalled: bool
    attempt: int
    max_attempts: int
    provider: str | None  #: of the newest attempt
    #: The provider's id of the newest attempt: one of these, or neither while there is none.
    runpod_job_id: str | None
    modal_call_id: str | None
    project_id: int | None
    game_id: int | None
    metadata: dict[str, str]
    params: Annotated[
        JsonValue, SkipValidation
        # Valid since the request, and there may be thousands of keyframes.
    ]
    created_at: str
    started_at: str | None
    completed_at: str | None
    cancel_requested_at: str | None
    result: OutputFacts | None
    #: Of all attempts together, as the provider bills them, or where it did not say, as the worker
    #: measured.
    gpu_seconds: float | None
    #: `gpu_seconds` at the settings' price for the GPU that did it; null where there is no price.
    cost_usd: float | None
    retry_of: str | None
    last_evidence: Evidence | None
    urls: JobUrls
    websocket_url: str  #: as `urls.ws`, for clients of the first API


class JobList(Wire):
    jobs: list[JobView]
    next_cursor: str | None


class JobChanges(Wire):
    """What an event changed of a job; what it did not is left out."""

    status: JobStatus | None = None
    phase: Phase | None = None
    progress: int | None = None
    message: str | None = None
    output_key: str | None = None
    error: str | None = None
    error_code: ErrorCode | None = None
    retryable: bool | None = None
    stalled: bool | None = None
    attempt: int | None = None
    provider: str | None = None
    runpod_job_id: str | None = None
    modal_call_id: str | None = None
    started_at: str | None = None
    completed_at: str | None = None
    cancel_requested_at: str | None = None
    result: OutputFacts | None = None
    gpu_seconds: float | None = None
    cost_usd: float | None = None


class EventView(Wire):
    """One event of a job: `seq` is 1, 2, 3 … without a gap. Laying `changes` over the job gives the
    job after it.
    """

    seq: int
    at: str
    kind: str
    changes: JobChanges


class Snapshot(Wire):
    """The job as it was after the event `seq`."""

    seq: int
    job: JobView


class Quote(Wire):
    """What a job would take, before it is sent; no promise."""

    output_seconds: float
    #: False: the source's length is unknown, so a usual bit rate was assumed.
    source_known: bool
    gpu_seconds: float  #: the median
    gpu_seconds_p90: float
    cost_usd: float | None  #: null without a price in the settings
    cost_usd_p90: float | None
    #: `history`: the user's own jobs of that type and mode; `default`: figures that came with it.
    basis: str


class QuoteRequest(JobRequest):
    """The body of `POST /api/jobs/quote`: a job, and how long its source is where the client
    knows.
    """

    source_seconds: Annotated[float, Strict(), Field(gt=0, le=86_400)] | None = None
