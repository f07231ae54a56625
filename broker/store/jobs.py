"""Every SQL statement about jobs, their attempts and their events.

A job changes in one way only: `transition`, a compare-and-set on its version, checked against
LEGAL_TRANSITIONS, with its event in the same SQL transaction. Each transition adds one to the
version and writes one event whose `seq` is that version, so a job's events have no gaps. `touch`
changes only when the job is due.

All methods block; callers run them in a thread. store/engine.py opens the database.
"""

import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import (
    Connection,
    Engine,
    Executable,
    RowMapping,
    and_,
    bindparam,
    case,
    delete,
    func,
    insert,
    or_,
    select,
    tuple_,
    update,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.pool import QueuePool

from broker.clock import now_ms
from broker.errors import IdTaken, IllegalTransition, QuotaExceeded
from broker.jobs.model import (
    LEGAL_TRANSITIONS,
    PROVIDER_IDS,
    Attempt,
    Event,
    EventKind,
    EvidenceSource,
    Job,
    JobChange,
    provider_ids,
)
from broker.store.tables import table
from broker.store.webhooks import enqueue
from schemas.jobs import JobStatus, JobType

JOBS = table("export_jobs")
ATTEMPTS = table("job_attempts")
EVENTS = table("job_events")
KEYS = table("idempotency_keys")
FLAGS = table("broker_flags")
#: How long a running statement may delay `close`.
CLOSE_SECONDS = 5.0
OPEN = (JobStatus.PENDING.value, JobStatus.PROCESSING.value)

# Built once: SQLAlchemy takes longer to build a statement than SQLite takes to run it.
_JOB = select(JOBS).where(JOBS.c.id == bindparam("job_id"))
_MINE = _JOB.where(JOBS.c.user_id == bindparam("user_id"))
_MY_VERSION = _MINE.with_only_columns(JOBS.c.version)
_ATTEMPTS = select(ATTEMPTS).where(ATTEMPTS.c.job_id.in_(bindparam("job_ids", expanding=True)))
_ATTEMPTS = _ATTEMPTS.order_by(ATTEMPTS.c.number)
_DUE = select(JOBS).where(JOBS.c.status.in_(OPEN), JOBS.c.due_at <= bindparam("now"))
_DUE = _DUE.where(JOBS.c.id.not_in(bindparam("but", expanding=True)))
# Of jobs that are due at the same moment, those at the provider come first: they may be done.
_DUE = _DUE.order_by(JOBS.c.due_at, JOBS.c.status.desc()).limit(bindparam("most"))
_UNCHANGED = update(JOBS).where(
    JOBS.c.id == bindparam("_id"), JOBS.c.version == bindparam("_version")
)
_UNTOUCHED = _UNCHANGED.where(JOBS.c.due_at == bindparam("_due_at"))
_KNOWN = update(ATTEMPTS).where(ATTEMPTS.c.token == bindparam("_token"))
#: The columns of `provider_job_id`.
_IDS = set(PROVIDER_IDS.values())
#: What no watcher of a job needs in its events.
_UNWATCHED = {"version", "due_at", "evidence_source", "evidence_at"}


@dataclass(frozen=True)
class JobFilter:
    """Which jobs to list; `before` is the (created_at, id) of the last job of the page before."""

    status: Sequence[JobStatus] = ()
    type: Sequence[JobType] = ()
    project_id: int | None = None
    search: str | None = None  #: in the id, the inputs' keys or the metadata
    before: tuple[int, str] | None = None

    def after(self, before: tuple[int, str]) -> "JobFilter":
        """Returns the filter of the page that follows that job."""
        return replace(self, before=before)


@dataclass(frozen=True)
class Quota:
    """What one user may have: open jobs, and seconds of output in jobs created since a moment.

    A job of unknown length counts `longest` seconds until it is complete, or what the quota has
    left.
    """

    open_jobs: int
    media_seconds: float | None
    since: int
    longest: float = 0.0


class JobStore:
    """Stores jobs. Takes and returns frozen values; rows do not leave the store.

    Args:
        on_event: called with each committed event, and the job after it.
    """

    def __init__(
        self, engine: Engine, on_event: Callable[[Event, Job], None] = lambda event, job: None
    ) -> None:
        self._engine = engine
        self._on_event = on_event

    def close(self) -> None:
        """Closes the database once running statements end; abandoned threads may still have one."""
        until, pool = time.monotonic() + CLOSE_SECONDS, self._engine.pool
        while isinstance(pool, QueuePool) and pool.checkedout() and time.monotonic() < until:
            time.sleep(0.01)
        self._engine.dispose()

    def check(self) -> None:
        """Takes and releases the write lock; raises what the database raises."""
        with self._engine.begin() as connection:
            connection.exec_driver_sql("SELECT 1")

    # ── write ───────────────────────────────────────────────────────────────────────────────────

    def add(self, job: Job, key: str | None = None, quota: Quota | None = None) -> Job:
        """Stores a new job and its first event. Once this returns, the job survives a power cut.

        Args:
            key: the client's idempotency key.
            quota: what the user may have, with this job.

        Returns:
            The job; or the stored job, where this user used the id or the key before.

        Raises:
            IdTaken: another user has the id.
            QuotaExceeded: the user would have more than the quota.
        """
        try:
            with self._engine.begin() as connection:
                counted = job.media_seconds
                if quota is not None:
                    counted = _check_quota(connection, job, quota)
                row = _job_row(job) | {"media_seconds": counted}
                connection.execute(insert(JOBS).values(row))
                first = {"status": job.status, "phase": job.phase}
                event = _add_event(connection, job, EventKind.ACCEPTED, first)
                if key is not None:
                    values = {"user_id": job.user_id, "key": key, "job_id": job.id}
                    connection.execute(insert(KEYS).values(**values, created_at=job.created_at))
        except (IntegrityError, QuotaExceeded):
            if (known := self.known(job, key)) is None:
                raise
            return known
        self._on_event(event, job)
        return job

    def transition(
        self, job: Job, kind: EventKind, change: JobChange, attempt: Attempt | None = None
    ) -> Job | None:
        """Applies `change`, with its event and `attempt`, if the job is as the caller saw it.

        Returns:
            The changed job; None if somebody else changed it first: then nothing was written.

        Raises:
            IllegalTransition: the job's status must not become the one in `change`.
        """
        changed = {name: getattr(change, name) for name in change.model_fields_set}
        after = job.model_copy(update={**changed, "version": job.version + 1})
        if after.status not in LEGAL_TRANSITIONS[job.status]:
            raise IllegalTransition(f"job {job.id} cannot go from {job.status} to {after.status}")
        values = after.model_dump(mode="json", include={*changed, "version"})
        row = _job_row(after, {*changed, "version"})
        with self._engine.begin() as connection:
            seen = {"_id": job.id, "_version": job.version}
            if connection.execute(_UNCHANGED, seen | row).rowcount == 0:
                return None
            if attempt is not None:
                _write_attempt(connection, attempt)
            watched = {name: value for name, value in values.items() if name not in _UNWATCHED}
            event = _add_event(connection, after, kind, watched)
            if after.status.is_terminal:
                enqueue(connection, after, event.at)
        self._on_event(event, after)
        return after

    def touch(
        self,
        job: Job,
        due_at: int,
        evidence: EvidenceSource | None = None,
        attempt: Attempt | None = None,
    ) -> Job | None:
        """Writes when an open job is due and what was observed; no transition, no event.

        Returns:
            The job as it is now; None if somebody changed or touched it meanwhile: then nothing
            was written, so of two brokers that reconcile a job at once, one goes on.
        """
        values: dict[str, Any] = {"due_at": due_at}
        if evidence is not None:
            values |= {"evidence_source": evidence, "evidence_at": now_ms()}
        seen = {"_id": job.id, "_version": job.version, "_due_at": job.due_at}
        with self._engine.begin() as connection:
            if connection.execute(_UNTOUCHED, seen | values).rowcount == 0:
                return None
            if attempt is not None:
                _write_attempt(connection, attempt)
        return job.model_copy(update=values)

    def note(self, attempt: Attempt) -> None:
        """Writes an attempt, whatever became of its job meanwhile."""
        with self._engine.begin() as connection:
            _write_attempt(connection, attempt)

    def hint(self, job_id: str, token: str, now: int) -> Attempt | None:
        """Makes an open job due now; returns the attempt with that token, or None."""
        named = select(ATTEMPTS).where(ATTEMPTS.c.token == token, ATTEMPTS.c.job_id == job_id)
        with self._engine.begin() as connection:
            row = connection.execute(named).mappings().first()
            if row is None:
                return None
            connection.execute(_due_now(job_id, now))
        return _attempt(row)

    def make_due(self, job_id: str, now: int) -> None:
        """Makes an open job due now."""
        with self._engine.begin() as connection:
            connection.execute(_due_now(job_id, now))

    def forget_keys(self, before: int) -> None:
        """Deletes the idempotency keys of before a moment."""
        with self._engine.begin() as connection:
            connection.execute(delete(KEYS).where(KEYS.c.created_at < before))

    def set_flag(self, name: str, on: bool) -> None:
        """Turns an operator's flag on or off."""
        with self._engine.begin() as connection:
            connection.execute(delete(FLAGS).where(FLAGS.c.name == name))
            if on:
                connection.execute(insert(FLAGS).values(name=name, since=now_ms()))

    # ── read ────────────────────────────────────────────────────────────────────────────────────

    def known(self, job: Job, key: str | None) -> Job | None:
        """Returns the stored job of this id, or of this user's key; raises IdTaken."""
        keyed = select(KEYS.c.job_id).where(KEYS.c.user_id == job.user_id, KEYS.c.key == key)
        with self._engine.begin() as connection:
            job_id = (connection.execute(keyed).scalar() if key is not None else None) or job.id
            row = connection.execute(_JOB, {"job_id": job_id}).mappings().first()
        if row is None:
            return None
        if row["user_id"] != job.user_id:
            raise IdTaken("This id cannot be used; choose another.")
        return as_job(row)

    def get(self, job_id: str, user_id: str) -> Job | None:
        """Returns the user's job; None also for another user's."""
        rows = self._rows(_MINE, job_id=job_id, user_id=user_id)
        return as_job(rows[0]) if rows else None

    def find(self, job_id: str) -> Job | None:
        """Returns a job of any user, or None."""
        rows = self._rows(_JOB, job_id=job_id)
        return as_job(rows[0]) if rows else None

    def load(self, job_id: str) -> tuple[Job, list[Attempt]]:
        """Returns a job and its attempts, the oldest first."""
        return self._with_attempts(_JOB, job_id=job_id)[0]

    def due(
        self, now: int, limit: int, but: Collection[str] = ()
    ) -> list[tuple[Job, list[Attempt]]]:
        """Returns the open jobs that are due, with their attempts; the longest overdue first.

        Args:
            but: the ids of jobs to leave out.
        """
        return self._with_attempts(_DUE, now=now, most=limit, but=list(but))

    def attempts(self, job_id: str) -> list[Attempt]:
        """Returns a job's attempts, the oldest first."""
        return [_attempt(row) for row in self._rows(_ATTEMPTS, job_ids=[job_id])]

    def events(self, job_id: str, after: int = 0) -> list[Event]:
        """Returns the job's events with a `seq` above `after`, in order."""
        query = select(EVENTS).where(EVENTS.c.job_id == job_id, EVENTS.c.seq > after)
        rows = self._rows(query.order_by(EVENTS.c.seq))
        return [Event.model_validate(dict(row)) for row in rows]

    def version(self, job_id: str, user_id: str) -> int | None:
        """Returns the version of the user's job, or None where there is no such job."""
        with self._engine.begin() as connection:
            return connection.execute(_MY_VERSION, {"job_id": job_id, "user_id": user_id}).scalar()

    def versions(self, job_ids: Sequence[str]) -> dict[str, int]:
        """Returns the versions of jobs, by id."""
        query = select(JOBS.c.id, JOBS.c.version).where(JOBS.c.id.in_(job_ids))
        return {row["id"]: row["version"] for row in self._rows(query)} if job_ids else {}

    def page(self, user_id: str, only: JobFilter, limit: int) -> list[Job]:
        """Returns at most `limit` of the user's jobs, the newest first."""
        query = select(JOBS).where(JOBS.c.user_id == user_id)
        for name in ("status", "type"):
            if wanted := getattr(only, name):
                query = query.where(JOBS.c[name].in_([word.value for word in wanted]))
        if only.project_id is not None:
            query = query.where(JOBS.c.project_id == only.project_id)
        if only.search is not None:
            texts = JOBS.c.id, JOBS.c.input_key, JOBS.c.meta, JOBS.c.params
            *found, in_params = [text.icontains(only.search, autoescape=True) for text in texts]
            # Without a key of the job's own, each clip has one in the params.
            query = query.where(or_(*found, and_(JOBS.c.input_key.is_(None), in_params)))
        if only.before is not None:
            query = query.where(tuple_(JOBS.c.created_at, JOBS.c.id) < only.before)
        query = query.order_by(JOBS.c.created_at.desc(), JOBS.c.id.desc()).limit(limit)
        return [as_job(row) for row in self._rows(query)]

    def orphans(self, before: int | None = None, limit: int = 1000) -> list[tuple[Job, Attempt]]:
        """Returns the orphans that are due by `before`, with their jobs; None: all of them."""
        query = select(ATTEMPTS).where(ATTEMPTS.c.orphan_due_at.is_not(None))
        if before is not None:
            query = query.where(ATTEMPTS.c.orphan_due_at <= before)
        rows = self._rows(query.order_by(ATTEMPTS.c.orphan_due_at).limit(limit))
        if not rows:
            return []
        of_them = select(JOBS).where(JOBS.c.id.in_({row["job_id"] for row in rows}))
        jobs = {row["id"]: as_job(row) for row in self._rows(of_them)}
        return [(jobs[row["job_id"]], _attempt(row)) for row in rows]

    def orphan(self, token: str) -> tuple[Job, Attempt]:
        """Returns an attempt and its job."""
        attempt = _attempt(self._rows(select(ATTEMPTS).where(ATTEMPTS.c.token == token))[0])
        return as_job(self._rows(_JOB, job_id=attempt.job_id)[0]), attempt

    def count_open(self) -> int:
        """Returns how many jobs are open."""
        query = select(func.count().label("jobs")).where(JOBS.c.status.in_(OPEN))
        return int(self._rows(query)[0]["jobs"])

    def overdue(self, now: int, least: int) -> dict[str, int]:
        """Returns, by user, how many open jobs are due; of users who have at least so many."""
        query = select(JOBS.c.user_id, func.count().label("jobs"))
        query = query.where(JOBS.c.status.in_(OPEN), JOBS.c.due_at <= now)
        rows = self._rows(query.group_by(JOBS.c.user_id).having(func.count() >= least))
        return {row["user_id"]: row["jobs"] for row in rows}

    def open_jobs(self) -> list[str]:
        """Returns the ids of all open jobs, the oldest first."""
        query = select(JOBS.c.id).where(JOBS.c.status.in_(OPEN)).order_by(JOBS.c.created_at)
        return [row["id"] for row in self._rows(query)]

    def flag(self, name: str) -> bool:
        """Whether an operator's flag is on."""
        return bool(self._rows(select(FLAGS.c.name).where(FLAGS.c.name == name)))

    def _rows(self, query: Executable, **values: Any) -> Sequence[RowMapping]:
        with self._engine.begin() as connection:
            return connection.execute(query, values).mappings().all()

    def _with_attempts(self, query: Executable, **values: Any) -> list[tuple[Job, list[Attempt]]]:
        """Returns jobs and their attempts, as they are at one moment."""
        with self._engine.begin() as connection:
            rows = connection.execute(query, values).mappings().all()
            attempts: dict[str, list[Attempt]] = {row["id"]: [] for row in rows}
            if rows:
                for row in connection.execute(_ATTEMPTS, {"job_ids": list(attempts)}).mappings():
                    attempts[row["job_id"]].append(_attempt(row))
        return [(as_job(row), attempts[row["id"]]) for row in rows]


def _due_now(job_id: str, now: int) -> Executable:
    # A job that is due changes too: a reconcile under way may have observed less than the caller
    # knows, and must not put the next one off.
    sooner = case((JOBS.c.due_at > now, now), else_=JOBS.c.due_at - 1)
    still = update(JOBS).where(JOBS.c.id == job_id, JOBS.c.status.in_(OPEN))
    return still.values(due_at=sooner)


def as_job(row: RowMapping) -> Job:
    """Returns the job of a row of `export_jobs`."""
    fields = {name: row[name] for name in row if name not in _IDS}
    own = PROVIDER_IDS.get(fields["provider"] or "runpod", "")
    return Job.model_validate({**fields, "provider_job_id": row.get(own)})


def _job_row(job: Job, names: Collection[str] = tuple(Job.model_fields)) -> dict[str, Any]:
    """Returns the columns of these fields of a job."""
    row = job.model_dump(mode="json", include=set(names) - {"provider_job_id"})
    if not {"provider", "provider_job_id"}.isdisjoint(names):
        row |= provider_ids(job.provider, job.provider_job_id)
    return row


def _attempt(row: RowMapping) -> Attempt:
    return Attempt.model_validate(dict(row))


def _write_attempt(connection: Connection, attempt: Attempt) -> None:
    values = attempt.model_dump(mode="json")
    if connection.execute(_KNOWN, {"_token": attempt.token, **values}).rowcount == 0:
        connection.execute(insert(ATTEMPTS), values)


def _add_event(connection: Connection, job: Job, kind: EventKind, data: Mapping[str, Any]) -> Event:
    event = Event(job_id=job.id, seq=job.version, at=now_ms(), kind=kind, data=json.dumps(data))
    connection.execute(insert(EVENTS), event.model_dump())
    return event


def _check_quota(connection: Connection, job: Job, quota: Quota) -> float | None:
    """Returns the seconds that the job counts, or raises QuotaExceeded."""
    # SQLite runs one transaction at a time anyway.
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock(func.hashtext(job.user_id))))
    mine = JOBS.c.user_id == job.user_id
    running = select(func.count()).where(mine, JOBS.c.status.in_(OPEN))
    if connection.execute(running).scalar_one() >= quota.open_jobs:
        raise QuotaExceeded(
            f"You have {quota.open_jobs} open jobs, as many as you may have at once."
        )
    if quota.media_seconds is None:
        return job.media_seconds
    kept = JOBS.c.status.in_((*OPEN, JobStatus.COMPLETE.value)), JOBS.c.created_at >= quota.since
    seconds = select(func.coalesce(func.sum(JOBS.c.media_seconds), 0.0)).where(mine, *kept)
    left = quota.media_seconds - connection.execute(seconds).scalar_one()
    # A job of unknown length takes at most what is left. Otherwise a short video in a large file
    # would be refused for ever.
    counted = min(quota.longest, left) if job.media_seconds is None else job.media_seconds
    if left <= 0 or counted > left:
        raise QuotaExceeded(
            f"You have asked for {quota.media_seconds:g} seconds of video within a day. A job "
            "that names no `end_time` counts by its file's size until it is complete."
        )
    return counted
