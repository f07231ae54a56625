"""The tables. Those of jobs, attempts and events have the fields of the values in jobs/model.py.

A job's `provider_job_id` has a column for each provider, under the name that its clients know.

On SQLite the tables are STRICT: a value of a wrong type is refused, which SQLite would otherwise
store.
"""

import types
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel
from sqlalchemy import (
    REAL,
    BigInteger,
    CheckConstraint,
    Column,
    Double,
    ForeignKey,
    Integer,
    Table,
    Text,
    UniqueConstraint,
)
from sqlalchemy.types import TypeEngine
from sqlmodel import Field, Index, SQLModel

from broker.jobs.model import PROVIDER_IDS, Attempt, Event, Job
from schemas.jobs import JobStatus

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
#: Numbers that never need 64 bits.
_SMALL = {"progress", "attempt", "max_attempts", "version", "number", "seq", "part"}
_SMALL |= {"timeout_seconds", "ttl_seconds"}


def _columns(model: type[BaseModel], primary_key: set[str]) -> Iterator[Column[Any]]:
    """Yields a column for each field of a frozen value."""
    for name, field in model.model_fields.items():
        if model is Job and name == "provider_job_id":
            yield from (Column(column, Text(), nullable=True) for column in PROVIDER_IDS.values())
            continue
        kinds = get_args(field.annotation) or (field.annotation,)
        foreign = [ForeignKey("export_jobs.id")] if name == "job_id" else []
        yield Column(
            name,
            _kind(name, kinds[0]),
            *foreign,
            primary_key=name in primary_key,
            nullable=types.NoneType in kinds,
        )


def _kind(name: str, python: type) -> TypeEngine[Any]:
    if issubclass(python, int):
        return Integer() if name in _SMALL else Int64
    return Float64 if issubclass(python, float) else Text()


Table(
    "export_jobs",
    SQLModel.metadata,
    *_columns(Job, {"id"}),
    CheckConstraint(
        f"status IN ({', '.join(repr(s.value) for s in JobStatus)})", name="status_known"
    ),
    CheckConstraint("progress BETWEEN 0 AND 100", name="progress_percent"),
    CheckConstraint(
        "(status = 'complete') = (output_key IS NOT NULL)", name="output_when_complete"
    ),
    CheckConstraint("(status = 'error') = (error_code IS NOT NULL)", name="code_when_error"),
    Index("ix_export_jobs_due", "status", "due_at"),
    Index("ix_export_jobs_user", "user_id", "created_at", "id"),
    Index("ix_export_jobs_ended", "completed_at"),
    sqlite_strict=True,
)
Table(
    "job_attempts",
    SQLModel.metadata,
    *_columns(Attempt, {"token"}),
    UniqueConstraint("job_id", "number"),
    Index("ix_job_attempts_orphan_due", "orphan_due_at"),
    sqlite_strict=True,
)
Table("job_events", SQLModel.metadata, *_columns(Event, {"job_id", "seq"}), sqlite_strict=True)


class IdempotencyKey(SQLModel, table=True):
    """The key that a client sent with a job. A second request with it makes no second job."""

    __tablename__ = "idempotency_keys"
    __table_args__: Any = (Index("ix_idempotency_keys_age", "created_at"), {"sqlite_strict": True})

    user_id: str = Field(primary_key=True, sa_type=Text)
    key: str = Field(primary_key=True, sa_type=Text)
    job_id: str = Field(foreign_key="export_jobs.id", sa_type=Text)
    created_at: int = Field(sa_type=Int64)


class BrokerFlag(SQLModel, table=True):
    """What an operator turned on; a restart keeps it."""

    __tablename__ = "broker_flags"
    __table_args__: Any = ({"sqlite_strict": True},)

    name: str = Field(primary_key=True, sa_type=Text)
    since: int = Field(sa_type=Int64)


class ApiKey(SQLModel, table=True):
    """The user of a bearer key. Only a hash of the key is kept."""

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
    """Admits one EventSource or WebSocket."""

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
    #: The store's own id of an upload in parts.
    multipart_id: str | None = Field(default=None, sa_type=Text)
    created_at: int = Field(sa_type=Int64)
    completed_at: int | None = Field(default=None, sa_type=Int64)


class WebhookRow(SQLModel, table=True):
    """A URL to call when a user's job ends."""

    __tablename__ = "webhooks"
    __table_args__: Any = (Index("ix_webhooks_user", "user_id"), {"sqlite_strict": True})

    id: str = Field(primary_key=True, sa_type=Text)
    user_id: str = Field(sa_type=Text)
    url: str = Field(sa_type=Text)
    kinds: str = Field(sa_type=Text)  #: separated by blanks
    secret: str = Field(sa_type=Text)
    #: Signs beside the new secret for a day after a rotation.
    former_secret: str | None = Field(default=None, sa_type=Text)
    rotated_at: int | None = Field(default=None, sa_type=Int64)
    created_at: int = Field(sa_type=Int64)
    disabled_at: int | None = Field(default=None, sa_type=Int64)


class DeliveryRow(SQLModel, table=True):
    """One message to one webhook, written in the SQL transaction of the job's transition."""

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


def table(name: str) -> Table:
    """Returns one of the tables, for SQL."""
    return SQLModel.metadata.tables[name]
