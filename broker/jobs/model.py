"""A job, its attempts and its events: frozen values, and the transitions that are legal.

Times are integer milliseconds since the epoch.
"""

from enum import StrEnum
from functools import cached_property

from pydantic import BaseModel, ConfigDict

from schemas.edits import OutputParams
from schemas.jobs import ErrorCode, JobStatus, JobType, Phase

ENDED = frozenset(status for status in JobStatus if status.is_terminal)
#: The statuses that may follow each status. A job may keep its status and change its phase.
LEGAL_TRANSITIONS: dict[JobStatus, frozenset[JobStatus]] = {
    JobStatus.PENDING: frozenset(JobStatus),
    JobStatus.PROCESSING: ENDED | {JobStatus.PROCESSING},
    **dict.fromkeys(ENDED, frozenset()),
}


class AttemptState(StrEnum):
    READY = "ready"  #: the provider has nothing of it, so it may be submitted
    SUBMITTING = "submitting"  #: a submit began, and its outcome is unknown
    SUBMITTED = "submitted"  #: the provider returned a job id
    SUPERSEDED = "superseded"  #: fenced by `stop.json`; another attempt may follow
    ENDED = "ended"  #: the job ended with it


class EventKind(StrEnum):
    ACCEPTED = "accepted"  #: stored; the job cannot be lost any more
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
    """Where the broker saw the reason for a transition. Older jobs keep the words of their time."""

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


#: What the table and the API call a provider's id of a job, by provider. The source documents fixed
#: these names.
PROVIDER_IDS = {"runpod": "runpod_job_id", "modal": "modal_call_id"}


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
    #: Of the newest attempt: its provider, and the provider's id, which each provider's clients
    #: know under a name of their own (PROVIDER_IDS).
    provider: str | None = None
    provider_job_id: str | None = None
    result: str | None = None  #: JSON of OutputFacts
    gpu_seconds: float | None = None
    cost_usd: float | None = None
    media_seconds: float | None = None  #: of output; an upper bound until the job is complete
    retry_of: str | None = None
    traceparent: str | None = None  #: of the request that submitted it (trace.py)
    evidence_source: str | None = None
    evidence_at: int | None = None
    created_at: int
    started_at: int | None = None
    completed_at: int | None = None
    cancel_requested_at: int | None = None
    progressed_at: int | None = None  #: when phase or progress last changed
    stalled_since: int | None = None  #: since when the job seems stuck rather than slow
    fingerprint: str | None = None  #: SHA-256 of the request
    due_at: int  #: when to reconcile it next
    version: int = 1  #: grows by 1 with each transition; compare-and-set compares it

    @cached_property
    def edit(self) -> OutputParams:
        """The params, parsed; they were validated before the job was stored."""
        return self.type.params_model.model_validate_json(self.params)


class JobChange(Frozen):
    """What a transition changes of a job: the fields that are set, and no others."""

    status: JobStatus | None = None
    phase: Phase | None = None
    progress: int | None = None
    message: str | None = None
    output_key: str | None = None
    error: str | None = None
    error_code: ErrorCode | None = None
    attempt: int | None = None
    provider: str | None = None
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
        """Returns both changes as one; `other` wins where both set a field."""
        fields = {name: getattr(other, name) for name in other.model_fields_set}
        return self.model_copy(update=fields)

    def beyond(self, job: Job) -> "JobChange":
        """Returns the change without the fields that equal the job's."""
        news = {n for n in self.model_fields_set if getattr(self, n) != getattr(job, n)}
        return JobChange.model_construct(news, **{name: getattr(self, name) for name in news})


class Attempt(Frozen):
    token: str
    job_id: str
    number: int
    state: AttemptState = AttemptState.SUBMITTING
    provider: str  #: its name
    target: str  #: the provider's address; the attempt is polled there, whatever the settings say
    provider_job_id: str | None = None
    plan: str | None = None  #: of an export that several workers make in parts
    part: int = 0  #: which part of the plan
    created_at: int
    submitted_at: int | None = None
    #: Since when the provider's queue has been empty, while the submit's outcome is unknown.
    queue_empty_since: int | None = None
    absent_since: int | None = None  #: the first "no such job"
    #: Since when the provider has not answered, while another one would take the job.
    unreachable_since: int | None = None
    started_at: int | None = None  #: when a worker took it, as far as the broker saw
    timeout_seconds: int | None = None  #: how long it may run once a worker has it
    ttl_seconds: int | None = None  #: how long the provider keeps it, run or not
    error_code: ErrorCode | None = None  #: why it was given up
    ended_at: int | None = None
    gpu_seconds: float | None = None  #: as the provider bills them, where it reports them
    #: When to cancel it at the provider again, after the broker gave it up. None: nothing is left.
    orphan_due_at: int | None = None

    def evolve(self, **changes: object) -> "Attempt":
        """Returns the attempt with these fields changed."""
        return self.model_copy(update=changes)


class Event(Frozen):
    job_id: str
    seq: int  #: 1, 2, 3 … without gaps within a job
    at: int
    kind: EventKind
    data: str = "{}"  #: JSON of what changed


def provider_ids(provider: str | None, provider_job_id: str | None) -> dict[str, str | None]:
    """Returns a provider's id of a job under the name that the provider's clients know."""
    own = PROVIDER_IDS.get(provider or "runpod", "")
    return {name: provider_job_id if name == own else None for name in PROVIDER_IDS.values()}
