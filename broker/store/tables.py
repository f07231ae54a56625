"""The tables, their frozen twins that the rest of the broker handles, and the table of legal transitions.

`SQLModel(table=True)` validates nothing and stays mutable, so rows never leave store.py: it hands out `Job`,
`Attempt` and `Event`, validated and frozen. Times are integer milliseconds since the epoch. On SQLite the tables
are STRICT, which refuses a wrong type where SQLite would otherwise store it.
"""

import enum
from typing import Any

from pydantic import ConfigDict
from sqlalchemy import REAL, BigInteger, CheckConstraint, Double, Integer, Table, Text, UniqueConstraint
from sqlalchemy.types import TypeEngine
from sqlmodel import Field, Index, SQLModel

from schemas.jobs import ErrorCode, JobStatus, JobType, Phase

SQLModel.metadata.naming_convention = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s",
    "pk": "pk_%(table_name)s",
}

#: STRICT tables know INTEGER and REAL only; PostgreSQL needs the wide types by name.
Int64: TypeEngine[int] = BigInteger().with_variant(Integer(), "sqlite")
Float64: TypeEngine[float] = Double().with_variant(REAL(), "sqlite")

#: From each status, where a job may go. A status that stays may still change phase, progress or attempt.
LEGAL_MOVES: dict[JobStatus, frozenset[JobStatus]] = {
    JobStatus.PENDING: frozenset(
        {JobStatus.PENDING, JobStatus.PROCESSING, JobStatus.COMPLETE, JobStatus.ERROR, JobStatus.CANCELLED}
    ),
    JobStatus.PROCESSING: frozenset(
        {JobStatus.PROCESSING, JobStatus.COMPLETE, JobStatus.ERROR, JobStatus.CANCELLED}
    ),
    JobStatus.COMPLETE: frozenset(),
    JobStatus.ERROR: frozenset(),
    JobStatus.CANCELLED: frozenset(),
}


class AttemptState(enum.StrEnum):
    READY = "ready"  #: nothing is at the provider: it may be (re)submitted
    SUBMITTING = "submitting"  #: a submit was begun and its end is not known
    SUBMITTED = "submitted"  #: the provider's job id is known
    SUPERSEDED = "superseded"  #: told to stop by `stop.json`; another attempt may follow
    ENDED = "ended"  #: the job ended with it


class JobFields(SQLModel):
    id: str = Field(primary_key=True, sa_type=Text)
    user_id: str = Field(sa_type=Text)
    project_id: int | None = Field(default=None, sa_type=Int64)
    game_id: int | None = Field(default=None, sa_type=Int64)
    type: JobType = Field(sa_type=Text)
    status: JobStatus = Field(default=JobStatus.PENDING, sa_type=Text)
    phase: Phase = Field(default=Phase.ACCEPTED, sa_type=Text)
    progress: int = Field(default=0, sa_type=Integer)
    message: str = Field(default="Waiting to be sent to a GPU", sa_type=Text)
    input_key: str | None = Field(default=None, sa_type=Text)  #: None where each clip has its own
    output_key: str | None = Field(default=None, sa_type=Text)
    params: str = Field(sa_type=Text)  #: JSON of the canonical params model
    meta: str = Field(default="{}", sa_type=Text)  #: JSON of the caller's own metadata
    error: str | None = Field(default=None, sa_type=Text)
    error_code: ErrorCode | None = Field(default=None, sa_type=Text)
    attempt: int = Field(default=0, sa_type=Integer)  #: attempts begun so far
    max_attempts: int = Field(sa_type=Integer)
    runpod_job_id: str | None = Field(default=None, sa_type=Text)  #: of the newest attempt
    result: str | None = Field(default=None, sa_type=Text)  #: JSON of OutputFacts
    gpu_seconds: float | None = Field(default=None, sa_type=Float64)
    cost_usd: float | None = Field(default=None, sa_type=Float64)
    media_seconds: float | None = Field(
        default=None, sa_type=Float64
    )  #: of output; under a quota at most, until it is known
    retry_of: str | None = Field(default=None, sa_type=Text)
    traceparent: str | None = Field(
        default=None, sa_type=Text
    )  #: of the request that it came with (trace.py)
    evidence_source: str | None = Field(default=None, sa_type=Text)
    evidence_at: int | None = Field(default=None, sa_type=Int64)
    created_at: int = Field(sa_type=Int64)
    started_at: int | None = Field(default=None, sa_type=Int64)
    completed_at: int | None = Field(default=None, sa_type=Int64)
    cancel_requested_at: int | None = Field(default=None, sa_type=Int64)
    progressed_at: int | None = Field(
        default=None, sa_type=Int64
    )  #: when the provider last told something new
    stalled_since: int | None = Field(default=None, sa_type=Int64)  #: since when it looks stuck, and not slow
    fingerprint: str | None = Field(default=None, sa_type=Text)  #: SHA-256 of the request
    due_at: int = Field(sa_type=Int64)  #: when to look at it next
    version: int = Field(default=1, sa_type=Integer)  #: +1 a move; what compare-and-set compares


class ExportJob(JobFields, table=True):
    __tablename__ = "export_jobs"
    __table_args__: Any = (
        CheckConstraint(f"status IN ({', '.join(repr(s.value) for s in JobStatus)})", name="status_known"),
        CheckConstraint("progress BETWEEN 0 AND 100", name="progress_percent"),
        CheckConstraint("(status = 'complete') = (output_key IS NOT NULL)", name="output_when_complete"),
        CheckConstraint("(status = 'error') = (error_code IS NOT NULL)", name="code_when_error"),
        Index("ix_export_jobs_due", "status", "due_at"),
        Index("ix_export_jobs_user", "user_id", "created_at", "id"),
        Index("ix_export_jobs_ended", "completed_at"),
        {"sqlite_strict": True},
    )


class AttemptFields(SQLModel):
    token: str = Field(primary_key=True, sa_type=Text)
    job_id: str = Field(foreign_key="export_jobs.id", sa_type=Text)
    number: int = Field(sa_type=Integer)
    state: AttemptState = Field(default=AttemptState.SUBMITTING, sa_type=Text)
    endpoint_url: str = Field(sa_type=Text)  #: polled where it was sent, also after the setting changed
    runpod_job_id: str | None = Field(default=None, sa_type=Text)
    created_at: int = Field(sa_type=Int64)
    submitted_at: int | None = Field(default=None, sa_type=Int64)
    #: Since when the endpoint has had nothing to do, while the end of the submit is not known.
    queue_empty_since: int | None = Field(default=None, sa_type=Int64)
    absent_since: int | None = Field(default=None, sa_type=Int64)  #: first "no such job"
    started_at: int | None = Field(default=None, sa_type=Int64)  #: when a worker took it, as far as seen
    #: How long it may run once a worker has it.
    timeout_seconds: int | None = Field(default=None, sa_type=Integer)
    ttl_seconds: int | None = Field(
        default=None, sa_type=Integer
    )  #: how long the provider keeps it, run or not
    error_code: ErrorCode | None = Field(default=None, sa_type=Text)  #: why it was given up
    ended_at: int | None = Field(default=None, sa_type=Int64)
    gpu_seconds: float | None = Field(
        default=None, sa_type=Float64
    )  #: as the provider bills them, where it said so
    #: It may still run there without anybody wanting it: when to see to that next. None: nothing is left there.
    orphan_due_at: int | None = Field(default=None, sa_type=Int64)


class JobAttempt(AttemptFields, table=True):
    __tablename__ = "job_attempts"
    __table_args__: Any = (
        UniqueConstraint("job_id", "number"),
        Index("ix_job_attempts_orphan_due", "orphan_due_at"),
        {"sqlite_strict": True},
    )


class EventFields(SQLModel):
    job_id: str = Field(primary_key=True, foreign_key="export_jobs.id", sa_type=Text)
    seq: int = Field(primary_key=True, sa_type=Integer)  #: 1, 2, 3 … without gaps within a job
    at: int = Field(sa_type=Int64)
    kind: str = Field(sa_type=Text)
    data: str = Field(default="{}", sa_type=Text)  #: JSON: what changed


class JobEvent(EventFields, table=True):
    __tablename__ = "job_events"
    __table_args__: Any = ({"sqlite_strict": True},)


class IdempotencyKey(SQLModel, table=True):
    """A key that a client sent along with a job, so that sending it again makes no second one."""

    __tablename__ = "idempotency_keys"
    __table_args__: Any = (Index("ix_idempotency_keys_age", "created_at"), {"sqlite_strict": True})

    user_id: str = Field(primary_key=True, sa_type=Text)
    key: str = Field(primary_key=True, sa_type=Text)
    job_id: str = Field(foreign_key="export_jobs.id", sa_type=Text)
    created_at: int = Field(sa_type=Int64)


class BrokerFlag(SQLModel, table=True):
    """What an operator has switched on, and stays so through a restart."""

    __tablename__ = "broker_flags"
    __table_args__: Any = ({"sqlite_strict": True},)

    name: str = Field(primary_key=True, sa_type=Text)
    since: int = Field(sa_type=Int64)


class ApiKey(SQLModel, table=True):
    """Who a bearer key stands for; of the key itself only a hash is kept."""

    __tablename__ = "api_keys"
    __table_args__: Any = ({"sqlite_strict": True},)

    id: str = Field(primary_key=True, sa_type=Text)
    sha256: str = Field(unique=True, sa_type=Text)
    user_id: str = Field(sa_type=Text)
    name: str = Field(sa_type=Text)
    admin: int = Field(sa_type=Integer)
    created_at: int = Field(sa_type=Int64)
    revoked_at: int | None = Field(default=None, sa_type=Int64)


class AccessTicket(SQLModel, table=True):
    """Lets one EventSource or WebSocket in; gone once used."""

    __tablename__ = "access_tickets"
    __table_args__: Any = (Index("ix_access_tickets_age", "expires_at"), {"sqlite_strict": True})

    sha256: str = Field(primary_key=True, sa_type=Text)
    user_id: str = Field(sa_type=Text)
    expires_at: int = Field(sa_type=Int64)


class UploadRow(SQLModel, table=True):
    """A file that a client was given URLs for."""

    __tablename__ = "uploads"
    __table_args__: Any = (Index("ix_uploads_age", "created_at"), {"sqlite_strict": True})

    id: str = Field(primary_key=True, sa_type=Text)
    user_id: str = Field(sa_type=Text)
    key: str = Field(sa_type=Text)
    content_type: str = Field(sa_type=Text)
    bytes: int | None = Field(default=None, sa_type=Int64)  #: as announced
    multipart_id: str | None = Field(
        default=None, sa_type=Text
    )  #: the store's own id, where it goes in parts
    created_at: int = Field(sa_type=Int64)
    completed_at: int | None = Field(default=None, sa_type=Int64)


class WebhookRow(SQLModel, table=True):
    """Where a user wants to be called."""

    __tablename__ = "webhooks"
    __table_args__: Any = (Index("ix_webhooks_user", "user_id"), {"sqlite_strict": True})

    id: str = Field(primary_key=True, sa_type=Text)
    user_id: str = Field(sa_type=Text)
    url: str = Field(sa_type=Text)
    kinds: str = Field(sa_type=Text)  #: separated by blanks
    secret: str = Field(sa_type=Text)
    former_secret: str | None = Field(default=None, sa_type=Text)  #: signs along for a day after a rotation
    rotated_at: int | None = Field(default=None, sa_type=Int64)
    created_at: int = Field(sa_type=Int64)
    disabled_at: int | None = Field(default=None, sa_type=Int64)


class DeliveryRow(SQLModel, table=True):
    """One message to one webhook, written in the transaction of the move that it tells of."""

    __tablename__ = "webhook_deliveries"
    __table_args__: Any = (
        Index("ix_webhook_deliveries_due", "due_at"),
        Index("ix_webhook_deliveries_webhook", "webhook_id", "created_at"),
        {"sqlite_strict": True},
    )

    id: str = Field(primary_key=True, sa_type=Text)
    webhook_id: str = Field(foreign_key="webhooks.id", sa_type=Text)
    job_id: str = Field(foreign_key="export_jobs.id", sa_type=Text)
    kind: str = Field(sa_type=Text)
    body: str = Field(sa_type=Text)
    tries: str = Field(default="[]", sa_type=Text)  #: JSON, one HookTry a call
    created_at: int = Field(sa_type=Int64)
    due_at: int | None = Field(default=None, sa_type=Int64)  #: None: delivered, or given up
    delivered_at: int | None = Field(default=None, sa_type=Int64)


class Job(JobFields):
    model_config = ConfigDict(frozen=True)  # type: ignore[assignment]  # SQLModel declares its own config type


class Attempt(AttemptFields):
    model_config = ConfigDict(frozen=True)  # type: ignore[assignment]


class Event(EventFields):
    model_config = ConfigDict(frozen=True)  # type: ignore[assignment]


def table(name: str) -> Table:
    """Returns one of the tables, for SQL."""
    return SQLModel.metadata.tables[name]
