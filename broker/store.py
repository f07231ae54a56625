"""Every SQL statement of the broker: jobs, their attempts and their events.

A job changes in one way only: `move`, a compare-and-set on its version, checked against LEGAL_MOVES, with its event
in the same transaction. Each move adds one to the version and writes one event whose `seq` is that version, so a
job's events are gapless by construction. `touch` alone changes what nobody watches (when to look next).

All methods block; callers run them in a thread. On SQLite there is exactly one connection: the WAL-reset bug of
SQLite 3.7.0 to 3.51.2 needs two, and one is plenty (docs/decisions/0003-one-sqlite-connection.md).
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import (
    Connection,
    Engine,
    RowMapping,
    create_engine,
    event,
    insert,
    select,
    tuple_,
    update,
)
from sqlmodel import SQLModel, col

from broker.errors import IllegalMove
from broker.models import LEGAL_MOVES, Attempt, Event, ExportJob, Job, JobAttempt, JobEvent
from schemas.jobs import JobStatus, JobType

JOBS = SQLModel.metadata.tables["export_jobs"]
ATTEMPTS = SQLModel.metadata.tables["job_attempts"]
EVENTS = SQLModel.metadata.tables["job_events"]
OPEN = (JobStatus.PENDING.value, JobStatus.PROCESSING.value)


def now_ms() -> int:
    """Returns the wall clock in milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


def open_engine(database_url: str) -> Engine:
    """Opens the database and brings its tables to this release's shape."""
    if not database_url.startswith("sqlite"):
        return _migrated(create_engine(database_url, pool_pre_ping=True))
    engine = create_engine(
        database_url, pool_size=1, max_overflow=0, connect_args={"check_same_thread": False, "timeout": 5.0}
    )
    event.listen(engine, "connect", _prepare_sqlite)
    # pysqlite would begin lazily and as a reader; a later upgrade to writer fails at once, whatever the timeout.
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    return _migrated(engine)


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # we say BEGIN ourselves
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=5000", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _migrated(engine: Engine) -> Engine:
    config = Config()
    config.set_main_option("script_location", "broker:migrations")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
    return engine


@dataclass(frozen=True)
class JobFilter:
    """What to list; `before` is the (created_at, id) of the last job already seen."""

    status: JobStatus | None = None
    type: JobType | None = None
    project_id: int | None = None
    before: tuple[int, str] | None = None


class JobStore:
    """Jobs on disk. Hands out and takes frozen values; rows stay in here."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def close(self) -> None:
        self._engine.dispose()

    def check(self) -> None:
        """Takes and releases the write lock; raises what the database raises."""
        with self._engine.begin() as connection:
            connection.exec_driver_sql("SELECT 1")

    def add(self, job: Job) -> Job:
        """Stores a new job and its first event. When this returns, the job survives a power cut."""
        with self._engine.begin() as connection:
            connection.execute(insert(JOBS).values(job.model_dump(mode="json")))
            _add_event(connection, job, "accepted", {"status": job.status, "phase": job.phase})
        return job

    def get(self, job_id: str, user_id: str) -> Job | None:
        """Returns the user's job, or None; another user's job is None too."""
        mine = select(JOBS).where(col(ExportJob.id) == job_id, col(ExportJob.user_id) == user_id)
        with self._engine.begin() as connection:
            row = connection.execute(mine).mappings().first()
        return _job(row) if row else None

    def page(self, user_id: str, only: JobFilter, limit: int) -> list[Job]:
        """Returns the user's newest jobs first, at most `limit`."""
        query = select(JOBS).where(col(ExportJob.user_id) == user_id)
        for name in ("status", "type", "project_id"):
            if (value := getattr(only, name)) is not None:
                query = query.where(JOBS.c[name] == value)
        if only.before is not None:
            query = query.where(tuple_(JOBS.c.created_at, JOBS.c.id) < only.before)
        query = query.order_by(JOBS.c.created_at.desc(), JOBS.c.id.desc()).limit(limit)
        with self._engine.begin() as connection:
            return [_job(row) for row in connection.execute(query).mappings()]

    def due(self, now: int, limit: int) -> list[str]:
        """Returns the ids of the open jobs that are to be looked at by now, longest overdue first."""
        query = select(JOBS.c.id).where(JOBS.c.status.in_(OPEN), JOBS.c.due_at <= now)
        with self._engine.begin() as connection:
            return list(connection.execute(query.order_by(JOBS.c.due_at).limit(limit)).scalars())

    def load(self, job_id: str) -> tuple[Job, Attempt | None]:
        """Returns a job and its newest attempt."""
        newest = select(ATTEMPTS).where(col(JobAttempt.job_id) == job_id)
        newest = newest.order_by(col(JobAttempt.number).desc()).limit(1)
        with self._engine.begin() as connection:
            job = connection.execute(select(JOBS).where(col(ExportJob.id) == job_id)).mappings().one()
            attempt = connection.execute(newest).mappings().first()
        return _job(job), Attempt.model_validate(dict(attempt)) if attempt else None

    def move(
        self, job: Job, kind: str, changes: Mapping[str, Any], attempt: Attempt | None = None
    ) -> Job | None:
        """Applies `changes` if the job is still as the caller saw it, with its event, and writes `attempt` along.

        Returns:
            The job as it now is, or None if somebody else moved it first: then nothing was changed.

        Raises:
            IllegalMove: the job's status may not become the one in `changes`.
        """
        moved = Job.model_validate({**job.model_dump(), **changes, "version": job.version + 1})
        if moved.status not in LEGAL_MOVES[job.status]:
            raise IllegalMove(f"job {job.id} cannot go from {job.status} to {moved.status}")
        wanted = moved.model_dump(mode="json", include={*changes, "version"})
        with self._engine.begin() as connection:
            done = connection.execute(
                update(JOBS).where(JOBS.c.id == job.id, JOBS.c.version == job.version).values(wanted)
            )
            if done.rowcount == 0:
                return None
            if attempt is not None:
                _write_attempt(connection, attempt)
            _add_event(connection, moved, kind, {k: v for k, v in wanted.items() if k not in _UNWATCHED})
        return moved

    def touch(
        self, job: Job, due_at: int, evidence: str | None = None, attempt: Attempt | None = None
    ) -> bool:
        """Says when to look at an open job next, and what was seen of it; no move, no event.

        Returns:
            False if somebody moved the job meanwhile: then nothing was written, `attempt` neither.
        """
        values: dict[str, Any] = {"due_at": due_at}
        if evidence is not None:
            values |= {"evidence_source": evidence, "evidence_at": now_ms()}
        unmoved = update(JOBS).where(JOBS.c.id == job.id, JOBS.c.version == job.version)
        with self._engine.begin() as connection:
            if connection.execute(unmoved.values(values)).rowcount == 0:
                return False
            if attempt is not None:
                _write_attempt(connection, attempt)
        return True

    def note(self, attempt: Attempt) -> None:
        """Writes what was learned about an attempt, whatever became of its job meanwhile."""
        with self._engine.begin() as connection:
            _write_attempt(connection, attempt)

    def events(self, job_id: str, after: int = 0) -> list[Event]:
        """Returns the job's events with a `seq` above `after`, in order."""
        query = select(EVENTS).where(col(JobEvent.job_id) == job_id, col(JobEvent.seq) > after)
        with self._engine.begin() as connection:
            rows = connection.execute(query.order_by(col(JobEvent.seq))).mappings()
            return [Event.model_validate(dict(row)) for row in rows]


_UNWATCHED = {"version", "due_at", "evidence_source", "evidence_at"}


def _job(row: RowMapping) -> Job:
    return Job.model_validate(dict(row))


def _write_attempt(connection: Connection, attempt: Attempt) -> None:
    values = attempt.model_dump(mode="json")
    known = update(ATTEMPTS).where(ATTEMPTS.c.token == attempt.token).values(values)
    if connection.execute(known).rowcount == 0:
        connection.execute(insert(ATTEMPTS).values(values))


def _add_event(connection: Connection, job: Job, kind: str, data: Mapping[str, Any]) -> None:
    connection.execute(
        insert(EVENTS).values(job_id=job.id, seq=job.version, at=now_ms(), kind=kind, data=json.dumps(data))
    )
