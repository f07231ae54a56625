"""A job, its attempts and its events: frozen values, the moves that are legal, and the words for what happened.

Times are integer milliseconds since the epoch.
"""

from enum import StrEnum
from functools import cached_property

from pydantic import BaseModel, ConfigDict

from schemas.edits import OutputParams
from schemas.jobs import ErrorCode, JobStatus, JobType, Phase

#: From each status, where a job may go. A status that stays may still change phase, progress or attempt.
LEGAL_TRANSITIONS: dict[JobStatus, frozenset[JobStatus]] = {
    JobStatus.PENDING: frozenset(
        {
            JobStatus.PENDING,
            JobStatus.PROCESSING,
            JobStatus.COMPLETE,
            JobStatus.ERROR,
            JobStatus.CANCELLED,
        }
    ),
    JobStatus.PROCESSING: frozenset(
        {JobStatus.PROCESSING, JobStatus.COMPLETE, JobStatus.ERROR, JobStatus.CANCELLED}
    ),
    JobStatus.COMPLETE: frozenset(),
    JobStatus.ERROR: frozenset(),
    JobStatus.CANCELLED: frozenset(),
}


class AttemptState(StrEnum):
    READY = "ready"  #: nothing is at the provider: it may be (re)submitted
    SUBMITTING = "submitting"  #: a submit was begun and its end is not known
    SUBMITTED = "submitted"  #: the provider's job id is known
    SUPERSEDED = "superseded"  #: told to stop by `stop.json`; another attempt may follow
    ENDED = "ended"  #: the job ended with it


class EventKind(StrEnum):
    ACCEPTED = "accepted"  #: stored, and never lost from here on
    ATTEMPT_BEGUN = "attempt_begun"
    HELD = "held"  #: waits for the provider or the operator
    SUBMITTED = "submitted"  #: the provider has it
    SUBMIT_UNKNOWN = "submit_unknown"  #: the provider may have it
    PROGRESS = "progress"
    SUPERSEDED = "superseded"  #: the attempt was given up; another one follows
    CANCEL_REQUESTED = "cancel_requested"
    COMPLETE = "complete"
    ERROR = "error"
    CANCELLED = "cancelled"


class EvidenceSource(StrEnum):
    """Where the evidence for a move was seen. Jobs of older brokers keep the words of their time."""

    RESULT = "bucket:result.json"
    STARTED = "bucket:started.json"
    STOP = "bucket:stop.json"
    SOURCE = "bucket:source"
    ACCEPTED = "provider:submit"
    STATUS = "provider:status"
    ABSENT = "provider:absent"
    CANCEL = "provider:cancel"
    WEBHOOK = "provider:webhook"
    BROKER = "broker"


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Job(Frozen):
    id: str
    user_id: str
    project_id: int | None = None
    game_id: int | None = None
    type: JobType
    status: JobStatus = JobStatus.PENDING
    phase: Phase = Phase.ACCEPTED
    progress: int = 0
    message: str = "Waiting to be sent to a GPU"
    input_key: str | None = None  #: None where each clip has its own
    output_key: str | None = None
    params: str  #: JSON of the canonical params model
    meta: str = "{}"  #: JSON of the caller's own metadata
    error: str | None = None
    error_code: ErrorCode | None = None
    attempt: int = 0  #: attempts begun so far
    max_attempts: int
    provider_job_id: str | None = (
        None  #: of the newest attempt; `runpod_job_id` in the table and the API
    )
    result: str | None = None  #: JSON of OutputFacts
    gpu_seconds: float | None = None
    cost_usd: float | None = None
    media_seconds: float | None = None  #: of output; under a quota at most, until it is known
    retry_of: str | None = None
    traceparent: str | None = None  #: of the request that it came with (trace.py)
    evidence_source: str | None = None
    evidence_at: int | None = None
    created_at: int
    started_at: int | None = None
    completed_at: int | None = None
    cancel_requested_at: int | None = None
    progressed_at: int | None = None  #: when the provider last told something new
    stalled_since: int | None = None  #: since when it looks stuck, and not slow
    fingerprint: str | None = None  #: SHA-256 of the request
    due_at: int  #: when to look at it next
    version: int = 1  #: +1 a move; what compare-and-set compares

    @cached_property
    def edit(self) -> OutputParams:
        """The params, parsed; they were valid when the job was stored."""
        return self.type.params_model.model_validate_json(self.params)


class JobChange(Frozen):
    """What a move changes of a job: the fields that are set, and no others."""

    status: JobStatus | None = None
    phase: Phase | None = None
    progress: int | None = None
    message: str | None = None
    output_key: str | None = None
    error: str | None = None
    error_code: ErrorCode | None = None
    attempt: int | None = None
    provider_job_id: str | None = None
    result: str | None = None
    gpu_seconds: float | None = None
    cost_usd: float | None = None
    media_seconds: float | None = None
    evidence_source: EvidenceSource | None = None
    evidence_at: int | None = None
    started_at: int | None = None
    completed_at: int | None = None
    cancel_requested_at: int | None = None
    progressed_at: int | None = None
    stalled_since: int | None = None
    due_at: int | None = None

    def merged(self, other: "JobChange") -> "JobChange":
        """Returns both changes as one; where both set a field, the other's counts."""
        return self.model_copy(
            update={name: getattr(other, name) for name in other.model_fields_set}
        )

    def beyond(self, job: Job) -> "JobChange":
        """Returns the change without what the job has already."""
        news = {n for n in self.model_fields_set if getattr(self, n) != getattr(job, n)}
        return JobChange.model_construct(news, **{name: getattr(self, name) for name in news})


class Attempt(Frozen):
    token: str
    job_id: str
    number: int
    state: AttemptState = AttemptState.SUBMITTING
    provider: str  #: the name of who runs it
    target: str  #: where there; asked for where it was sent, also after the setting changed
    provider_job_id: str | None = None
    plan: str | None = None  #: of an export that several workers make in parts
    part: int = 0  #: which part of the plan
    created_at: int
    submitted_at: int | None = None
    #: Since when the endpoint has had nothing to do, while the end of the submit is not known.
    queue_empty_since: int | None = None
    absent_since: int | None = None  #: first "no such job"
    started_at: int | None = None  #: when a worker took it, as far as seen
    timeout_seconds: int | None = None  #: how long it may run once a worker has it
    ttl_seconds: int | None = None  #: how long the provider keeps it, run or not
    error_code: ErrorCode | None = None  #: why it was given up
    ended_at: int | None = None
    gpu_seconds: float | None = None  #: as the provider bills them, where it said so
    #: It may still run there without anybody wanting it: when to see to that next. None: nothing is left there.
    orphan_due_at: int | None = None

    def evolve(self, **changes: object) -> "Attempt":
        """Returns the attempt with these fields changed."""
        return self.model_copy(update=changes)


class Event(Frozen):
    job_id: str
    seq: int  #: 1, 2, 3 … without gaps within a job
    at: int
    kind: EventKind
    data: str = "{}"  #: JSON: what changed
