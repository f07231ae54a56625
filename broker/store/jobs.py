"""Every SQL statement about jobs, their attempts and their events.

A job changes in one way only: `move`, a compare-and-set on its version, checked against LEGAL_TRANSITIONS, with its event
in the same transaction. Each move adds one to the version and writes one event whose `seq` is that version, so a
job's events are gapless by construction. `touch` alone changes what nobody watches (when to look next).

All methods block; callers run them in a thread. database.py opens what they run on.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import (
    Connection,
    Engine,
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
    union,
    update,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.pool import QueuePool

from broker.clock import now_ms
from broker.errors import IdTaken, IllegalTransition, QuotaExceeded
from broker.jobs.model import (
    LEGAL_TRANSITIONS,
    Attempt,
    Event,
    EventKind,
    EvidenceSource,
    Job,
    JobChange,
)
from broker.store.tables import table
from broker.store.webhooks import enqueue
from schemas.jobs import JobStatus, JobType

JOBS = table("export_jobs")
ATTEMPTS = table("job_attempts")
EVENTS = table("job_events")
KEYS = table("idempotency_keys")
FLAGS = table("broker_flags")
UPLOADS = table("uploads")
#: How long a statement that is under way may hold up the end.
CLOSE_SECONDS = 5.0
OPEN = (JobStatus.PENDING.value, JobStatus.PROCESSING.value)

# Said once, and not anew for each job: SQLAlchemy takes longer to build a statement than SQLite to run it.
_JOB = select(JOBS).where(JOBS.c.id == bindparam("job_id"))
_MINE = _JOB.where(JOBS.c.user_id == bindparam("user_id"))
_MY_VERSION = _MINE.with_only_columns(JOBS.c.version)
_ATTEMPTS = (
    select(ATTEMPTS)
    .where(ATTEMPTS.c.job_id.in_(bindparam("job_ids", expanding=True)))
    .order_by(ATTEMPTS.c.number)
)
_DUE = (
    select(JOBS)
    .where(JOBS.c.status.in_(OPEN), JOBS.c.due_at <= bindparam("now"))
    .order_by(JOBS.c.due_at)
    .limit(bindparam("most"))
)
_UNMOVED = update(JOBS).where(
    JOBS.c.id == bindparam("_id"), JOBS.c.version == bindparam("_version")
)
_UNTOUCHED = _UNMOVED.where(JOBS.c.due_at == bindparam("_due_at"))
_KNOWN = update(ATTEMPTS).where(ATTEMPTS.c.token == bindparam("_token"))


@dataclass(frozen=True)
class JobFilter:
    """What to list; `before` is the (created_at, id) of the last job already seen."""

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
    """What one user may have: open jobs at once, and seconds of output among those asked for since a moment.

    `longest` is what a job of unknown length counts until it is complete, as far as so much is left.
    """

    open_jobs: int
    media_seconds: float | None
    since: int
    longest: float = 0.0


class JobStore:
    """Jobs on disk. Hands out and takes frozen values; rows stay in here.

    Args:
        on_event: called with each event once it is committed, and the job after it.
    """

    def __init__(
        self, engine: Engine, on_event: Callable[[Event, Job], None] = lambda event, job: None
    ) -> None:
        self._engine = engine
        self._on_event = on_event

    def close(self) -> None:
        """Closes the database, once its last user is done: what was given up goes on in its thread, with a connection of its own."""
        until = time.monotonic() + CLOSE_SECONDS
        while (
            isinstance(pool := self._engine.pool, QueuePool)
            and pool.checkedout()
            and time.monotonic() < until
        ):
            time.sleep(0.01)
        self._engine.dispose()

    def check(self) -> None:
        """Takes and releases the write lock; raises what the database raises."""
        with self._engine.begin() as connection:
            connection.exec_driver_sql("SELECT 1")

    def add(self, job: Job, key: str | None = None, quota: Quota | None = None) -> Job:
        """Stores a new job and its first event. When this returns, the job survives a power cut.

        Args:
            key: the client's own for this submit.
            quota: what the user may have, this job included.

        Returns:
            The job; the one that is stored already where its id or the key was used before by this user.

        Raises:
            IdTaken: the id is another user's.
            QuotaExceeded: the job would be one too many.
        """
        try:
            with self._engine.begin() as connection:
                counted = job.media_seconds
                if quota is not None:
                    counted = _check_quota(connection, job, quota)
                row = job.model_dump(mode="json") | {"media_seconds": counted}
                connection.execute(insert(JOBS).values(row))
                event = _add_event(
                    connection, job, EventKind.ACCEPTED, {"status": job.status, "phase": job.phase}
                )
                if key is not None:
                    values = {"user_id": job.user_id, "key": key, "job_id": job.id}
                    connection.execute(insert(KEYS).values(**values, created_at=job.created_at))
        except (IntegrityError, QuotaExceeded):
            if (known := self.known(job, key)) is None:
                raise
            return known
        self._on_event(event, job)
        return job

    def known(self, job: Job, key: str | None) -> Job | None:
        """Returns the job that is stored already under this id, or this key of the user's; raises IdTaken."""
        keyed = select(KEYS.c.job_id).where(KEYS.c.user_id == job.user_id, KEYS.c.key == key)
        with self._engine.begin() as connection:
            job_id = (connection.execute(keyed).scalar() if key is not None else None) or job.id
            row = connection.execute(_JOB, {"job_id": job_id}).mappings().first()
        if row is None:
            return None
        if row["user_id"] != job.user_id:
            raise IdTaken("This id cannot be used; choose another.")
        return _job(row)

    def forget(self, keys_before: int, uploads_before: int) -> None:
        """Deletes idempotency keys of before that moment, and what is noted of uploads of before that one."""
        with self._engine.begin() as connection:
            connection.execute(delete(KEYS).where(KEYS.c.created_at < keys_before))
            connection.execute(delete(UPLOADS).where(UPLOADS.c.created_at < uploads_before))

    def get(self, job_id: str, user_id: str) -> Job | None:
        """Returns the user's job, or None; another user's job is None too."""
        with self._engine.begin() as connection:
            row = (
                connection.execute(_MINE, {"job_id": job_id, "user_id": user_id}).mappings().first()
            )
        return _job(row) if row else None

    def version(self, job_id: str, user_id: str) -> int | None:
        """Returns how often the user's job has moved, or None where there is no such job."""
        with self._engine.begin() as connection:
            return connection.execute(_MY_VERSION, {"job_id": job_id, "user_id": user_id}).scalar()

    def versions(self, job_ids: Sequence[str]) -> dict[str, int]:
        """Returns how often each of the jobs has moved."""
        query = select(JOBS.c.id, JOBS.c.version).where(JOBS.c.id.in_(job_ids))
        with self._engine.begin() as connection:
            return {row.id: row.version for row in connection.execute(query)} if job_ids else {}

    def page(self, user_id: str, only: JobFilter, limit: int) -> list[Job]:
        """Returns the user's newest jobs first, at most `limit`."""
        query = select(JOBS).where(JOBS.c.user_id == user_id)
        for name in ("status", "type"):
            if wanted := getattr(only, name):
                query = query.where(JOBS.c[name].in_([word.value for word in wanted]))
        if only.project_id is not None:
            query = query.where(JOBS.c.project_id == only.project_id)
        if only.search is not None:
            said = [
                column.icontains(only.search, autoescape=True)
                for column in (JOBS.c.id, JOBS.c.input_key, JOBS.c.meta, JOBS.c.params)
            ]
            said[-1] = and_(JOBS.c.input_key.is_(None), said[-1])  # each clip has its own key
            query = query.where(or_(*said))
        if only.before is not None:
            query = query.where(tuple_(JOBS.c.created_at, JOBS.c.id) < only.before)
        query = query.order_by(JOBS.c.created_at.desc(), JOBS.c.id.desc()).limit(limit)
        with self._engine.begin() as connection:
            return [_job(row) for row in connection.execute(query).mappings()]

    def due(self, now: int, limit: int) -> list[tuple[Job, list[Attempt]]]:
        """Returns the open jobs that are due by now, with their attempts; the longest overdue first."""
        with self._engine.begin() as connection:
            rows = connection.execute(_DUE, {"now": now, "most": limit}).mappings().all()
            return _with_attempts(connection, rows)

    def hint(self, job_id: str, token: str, now: int) -> Attempt | None:
        """Has an open job looked at now; returns the attempt with that token, or None where there is none."""
        named = select(ATTEMPTS).where(ATTEMPTS.c.token == token, ATTEMPTS.c.job_id == job_id)
        # Changed also where it is due already: a look that is under way may have seen less, and must not put the next one off.
        sooner = case((JOBS.c.due_at > now, now), else_=JOBS.c.due_at - 1)
        still = (
            update(JOBS).where(JOBS.c.id == job_id, JOBS.c.status.in_(OPEN)).values(due_at=sooner)
        )
        with self._engine.begin() as connection:
            row = connection.execute(named).mappings().first()
            if row is not None:
                connection.execute(still)
        return _attempt(row) if row else None

    def orphans(self, before: int | None = None, limit: int = 1000) -> list[tuple[Job, Attempt]]:
        """Returns given-up attempts that may still run at the provider, with their jobs; those due by `before`."""
        query = select(ATTEMPTS).where(ATTEMPTS.c.orphan_due_at.is_not(None))
        if before is not None:
            query = query.where(ATTEMPTS.c.orphan_due_at <= before)
        with self._engine.begin() as connection:
            rows = (
                connection.execute(query.order_by(ATTEMPTS.c.orphan_due_at).limit(limit))
                .mappings()
                .all()
            )
            if not rows:  # as nearly always, and asked for at every turn of the loop
                return []
            wanted = select(JOBS).where(JOBS.c.id.in_({row["job_id"] for row in rows}))
            jobs = {row["id"]: _job(row) for row in connection.execute(wanted).mappings()}
        return [(jobs[row["job_id"]], _attempt(row)) for row in rows]

    def orphan(self, token: str) -> tuple[Job, Attempt]:
        """Returns an attempt and its job."""
        with self._engine.begin() as connection:
            row = (
                connection.execute(select(ATTEMPTS).where(ATTEMPTS.c.token == token))
                .mappings()
                .one()
            )
            job = connection.execute(_JOB, {"job_id": row["job_id"]}).mappings().one()
        return _job(job), _attempt(row)

    def count_open(self) -> int:
        """Returns how many jobs are open."""
        query = select(func.count()).select_from(JOBS).where(JOBS.c.status.in_(OPEN))
        with self._engine.begin() as connection:
            return int(connection.execute(query).scalar_one())

    def overdue(self, now: int, least: int) -> dict[str, int]:
        """Returns, by user, how many open jobs are due; of users who have at least so many."""
        query = select(JOBS.c.user_id, func.count()).where(
            JOBS.c.status.in_(OPEN), JOBS.c.due_at <= now
        )
        query = query.group_by(JOBS.c.user_id).having(func.count() >= least)
        with self._engine.begin() as connection:
            return {row[0]: row[1] for row in connection.execute(query)}

    def open_jobs(self) -> list[str]:
        """Returns the ids of all open jobs, oldest first."""
        query = select(JOBS.c.id).where(JOBS.c.status.in_(OPEN)).order_by(JOBS.c.created_at)
        with self._engine.begin() as connection:
            return list(connection.execute(query).scalars())

    def load(self, job_id: str) -> tuple[Job, list[Attempt]]:
        """Returns a job and its attempts, the oldest first."""
        with self._engine.begin() as connection:
            row = connection.execute(_JOB, {"job_id": job_id}).mappings().one()
            return _with_attempts(connection, [row])[0]

    def find(self, job_id: str) -> Job | None:
        """Returns a job of whatever user, or None."""
        with self._engine.begin() as connection:
            row = connection.execute(_JOB, {"job_id": job_id}).mappings().first()
        return _job(row) if row else None

    def attempts(self, job_id: str) -> list[Attempt]:
        """Returns a job's attempts, the oldest first."""
        with self._engine.begin() as connection:
            rows = connection.execute(_ATTEMPTS, {"job_ids": [job_id]}).mappings()
            return [_attempt(row) for row in rows]

    def transition(
        self, job: Job, kind: EventKind, change: JobChange, attempt: Attempt | None = None
    ) -> Job | None:
        """Applies `change` if the job is still as the caller saw it, with its event, and writes `attempt` along.

        Returns:
            The job as it now is, or None if somebody else moved it first: then nothing was changed.

        Raises:
            IllegalTransition: the job's status may not become the one in `change`.
        """
        changed = {name: getattr(change, name) for name in change.model_fields_set}
        moved = job.model_copy(update={**changed, "version": job.version + 1})
        if moved.status not in LEGAL_TRANSITIONS[job.status]:
            raise IllegalTransition(f"job {job.id} cannot go from {job.status} to {moved.status}")
        wanted = moved.model_dump(mode="json", include={*changed, "version"})
        with self._engine.begin() as connection:
            seen = {"_id": job.id, "_version": job.version}
            if connection.execute(_UNMOVED, seen | wanted).rowcount == 0:
                return None
            if attempt is not None:
                _write_attempt(connection, attempt)
            told = {k: v for k, v in wanted.items() if k not in _UNWATCHED}
            event = _add_event(connection, moved, kind, told)
            if moved.status.is_terminal:
                enqueue(connection, moved, event.at)
        self._on_event(event, moved)
        return moved

    def touch(
        self,
        job: Job,
        due_at: int,
        evidence: EvidenceSource | None = None,
        attempt: Attempt | None = None,
    ) -> Job | None:
        """Says when to look at an open job next, and what was seen of it; no move, no event.

        Returns:
            The job as it now is, or None if somebody moved or touched it meanwhile: then nothing was written, `attempt`
            neither. So of two brokers that look at the same moment, one goes on.
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
        """Writes what was learned about an attempt, whatever became of its job meanwhile."""
        with self._engine.begin() as connection:
            _write_attempt(connection, attempt)

    def keys_in_use(self, user_id: str) -> set[str]:
        """Returns the keys of all objects that any of the user's jobs names."""
        named = select(JOBS.c.input_key, JOBS.c.output_key, JOBS.c.params).where(
            JOBS.c.user_id == user_id
        )
        keys: set[str] = set()
        with self._engine.begin() as connection:
            for row in connection.execute(named):
                keys.update(key for key in row[:2] if key is not None)
                keys.update(_keys_in(json.loads(row[2])))
        return keys

    def uploads(self, user_id: str) -> dict[str, int | None]:
        """Returns the keys that the user was given URLs for, and that are not forgotten yet, with the size that was accepted."""
        accepted = case((UPLOADS.c.completed_at.is_not(None), UPLOADS.c.bytes))
        query = select(UPLOADS.c.key, accepted).where(UPLOADS.c.user_id == user_id)
        with self._engine.begin() as connection:
            return {row[0]: row[1] for row in connection.execute(query)}

    def refuse_upload(self, user_id: str, key: str, size: int) -> bool:
        """Notes that an upload is larger than any may be.

        Returns:
            False where the object is none of our uploads, or was accepted with this size under an earlier limit.
        """
        was_accepted = and_(UPLOADS.c.completed_at.is_not(None), UPLOADS.c.bytes == size)
        mine = update(UPLOADS).where(
            UPLOADS.c.user_id == user_id, UPLOADS.c.key == key, ~was_accepted
        )
        with self._engine.begin() as connection:
            return connection.execute(mine.values(bytes=size, completed_at=None)).rowcount > 0

    def flag(self, name: str) -> bool:
        """Whether an operator has switched something on."""
        with self._engine.begin() as connection:
            return (
                connection.execute(select(FLAGS.c.name).where(FLAGS.c.name == name)).first()
                is not None
            )

    def set_flag(self, name: str, on: bool) -> None:
        """Switches something on or off, for good."""
        with self._engine.begin() as connection:
            connection.execute(delete(FLAGS).where(FLAGS.c.name == name))
            if on:
                connection.execute(insert(FLAGS).values(name=name, since=now_ms()))

    def needs(self, user_id: str, key: str, since: int) -> bool:
        """Whether one of the user's jobs works on that object, or did since that moment."""
        lately = or_(JOBS.c.completed_at.is_(None), JOBS.c.completed_at >= since)
        query = select(JOBS.c.id).where(JOBS.c.user_id == user_id, JOBS.c.input_key == key, lately)
        with self._engine.begin() as connection:
            return connection.execute(query.limit(1)).first() is not None

    def users(self) -> list[str]:
        """Returns the ids of all users that have jobs or uploads."""
        query = union(select(JOBS.c.user_id), select(UPLOADS.c.user_id))
        with self._engine.begin() as connection:
            return list(connection.execute(query).scalars())

    def events(self, job_id: str, after: int = 0) -> list[Event]:
        """Returns the job's events with a `seq` above `after`, in order."""
        query = select(EVENTS).where(EVENTS.c.job_id == job_id, EVENTS.c.seq > after)
        with self._engine.begin() as connection:
            rows = connection.execute(query.order_by(EVENTS.c.seq)).mappings()
            return [Event.model_validate(dict(row)) for row in rows]


_UNWATCHED = {"version", "due_at", "evidence_source", "evidence_at"}


def _keys_in(params: Any) -> Iterator[str]:
    """Yields whatever is called `…_key` in a job's params, at any depth."""
    if isinstance(params, list):
        for item in params:
            yield from _keys_in(item)
    elif isinstance(params, dict):
        for name, value in params.items():
            if name.endswith("_key") and isinstance(value, str):
                yield value
            else:
                yield from _keys_in(value)


def _job(row: RowMapping) -> Job:
    fields = dict(row)
    fields["provider_job_id"] = fields.pop("runpod_job_id")
    return Job.model_validate(fields)


def _attempt(row: RowMapping) -> Attempt:
    return Attempt.model_validate(dict(row))


def _with_attempts(
    connection: Connection, jobs: Sequence[RowMapping]
) -> list[tuple[Job, list[Attempt]]]:
    attempts: dict[str, list[Attempt]] = {row["id"]: [] for row in jobs}
    if jobs:
        for row in connection.execute(_ATTEMPTS, {"job_ids": list(attempts)}).mappings():
            attempts[row["job_id"]].append(_attempt(row))
    return [(_job(row), attempts[row["id"]]) for row in jobs]


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
    if connection.dialect.name == "postgresql":  # on SQLite, one transaction is at it anyway
        connection.execute(select(func.pg_advisory_xact_lock(func.hashtext(job.user_id))))
    mine = JOBS.c.user_id == job.user_id
    running = select(func.count()).select_from(JOBS).where(mine, JOBS.c.status.in_(OPEN))
    if connection.execute(running).scalar_one() >= quota.open_jobs:
        raise QuotaExceeded(
            f"You have {quota.open_jobs} open jobs, as many as you may have at once."
        )
    if quota.media_seconds is None:
        return job.media_seconds
    kept = JOBS.c.status.in_((*OPEN, JobStatus.COMPLETE.value))
    seconds = select(func.coalesce(func.sum(JOBS.c.media_seconds), 0.0)).where(
        mine, kept, JOBS.c.created_at >= quota.since
    )
    left = quota.media_seconds - connection.execute(seconds).scalar_one()
    # A job of unknown length takes what is left, and no more: a large file of a short video would be refused for ever.
    counted = min(quota.longest, left) if job.media_seconds is None else job.media_seconds
    if left <= 0 or counted > left:
        told = f"You have asked for {quota.media_seconds:g} seconds of video within a day."
        raise QuotaExceeded(
            f"{told} A job that names no `end_time` counts by its file's size until it is complete."
        )
    return counted
