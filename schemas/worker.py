"""What crosses RunPod and the bucket between broker and worker.

An attempt has a folder, `{user_id}/jobs/{job_id}/{attempt_token}/`, with four documents:
`started.json` (the worker's first write), `progress.json` (the newest progress), `result.json` (the
last, put only once) and `stop.json` (the broker's: give up).
"""

from typing import Annotated, Self

from pydantic import ConfigDict, Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from schemas.jobs import Edited, ErrorCode, OutputFacts, Phase, Wire
from schemas.keys import ObjectKey, UserId

#: As W3C Trace Context has it, version 00.
Traceparent = Annotated[
    str, StringConstraints(pattern=r"^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$")
]
AttemptToken = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
JobId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


class WorkerInput(Edited):
    """The `input` of a provider job. Without `attempt_token` (a job pasted into the RunPod console)
    the worker writes exactly `output_key` and no control documents; with one, the worker draws the
    output key itself.

    A worker does not leave out fields that it does not know, since they might be part of the edit.
    Which it then is depends on who sent them: with an `attempt_token`, a broker has checked the
    input and may be newer than the worker, which hands the job back (`worker_lost`) for another one
    to do; without, somebody has typed a field wrong, and reads which (`invalid_params`).
    """

    job_id: JobId
    user_id: UserId
    attempt_token: AttemptToken | None = None
    output_key: ObjectKey | None = None
    traceparent: Traceparent | None = None  #: for the log alone
    #: How long the worker may take for the job, in seconds: not every provider has a limit per job.
    timeout_seconds: Annotated[int, Field(gt=0)] | None = None
    #: How often a provider may deliver the attempt; the worker refuses the next delivery.
    max_deliveries: Annotated[int, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _knows_where_to_write(self) -> Self:
        if (self.attempt_token is None) == (self.output_key is None):
            raise PydanticCustomError(
                "output", "give either attempt_token or output_key, and not both"
            )
        return self


class FromWorker(Wire):
    """Read by a broker that may be older than the worker: unknown fields are ignored, not
    refused.
    """

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


class OfARun(FromWorker):
    """A document of a run; `runpod_job_id` is the wire's word for the provider's id of its job,
    whoever that is.
    """

    runpod_job_id: str

    @property
    def provider_job_id(self) -> str:
        return self.runpod_job_id


class Started(OfARun):
    """`started.json`: proof that a provider job took up the attempt."""

    worker_id: str
    at_ms: int
    version: str | None = None  #: of the worker; the first ones did not send it
    #: How often the provider has delivered the attempt: a provider restarts the job of a worker
    #: that died.
    deliveries: Annotated[int, Field(gt=0)] = 1


class Progress(FromWorker):
    """`progress.json`, and a provider job's `output` while it runs, where the provider has one;
    `progress` counts frames really done.
    """

    phase: Phase
    progress: Annotated[int, Field(ge=0, le=99)]
    message: str = ""


class Timings(FromWorker):
    """Where the wall-clock seconds went."""

    fetch_seconds: float
    edit_seconds: float  #: from the first look at the sources to the finished file
    upload_seconds: float
    #: Within edit_seconds: what the edit waited for frames, worked on pictures, and waited for the
    #: encoder.
    decode_seconds: float = 0.0
    infer_seconds: float = 0.0
    encode_seconds: float = 0.0
    #: From the worker's start to its first job's, on that job alone.
    cold_start_seconds: float = 0.0


class Fallback(FromWorker):
    """A part of the GPU that failed in a run, so that the CPU did its work.

    Attributes:
        codec: `decoder` or `encoder`.
        key: the video that the decoder failed at.
    """

    codec: str
    key: str | None = None


class Result(OfARun):
    """`result.json`, and a provider job's final `output`. Whoever puts it first is the attempt's
    result.
    """

    output_key: ObjectKey
    facts: OutputFacts
    timings: Timings
    gpu: str | None = None  #: its name as CUDA gives it; None for a CPU
    fallbacks: tuple[Fallback, ...] = ()


class Failure(FromWorker):
    """A failed provider job's `output`, beside RunPod's own `error` sentence."""

    error_code: ErrorCode
    retryable: bool
    detail: str = ""


def attempt_folder(job_id: str, attempt_token: str) -> str:
    """Returns the attempt's folder, relative to the user's."""
    return f"jobs/{job_id}/{attempt_token}"
