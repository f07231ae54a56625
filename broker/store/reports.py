"""The figures of all users' jobs, counted by SQL. All methods block."""

from dataclasses import dataclass

from sqlalchemy import Engine, func, or_, select

from broker.clock import HOUR_MS
from broker.jobs.model import AttemptState, Job
from broker.jobs.place import Place
from broker.store.jobs import ATTEMPTS, JOBS, OPEN, as_job
from schemas.jobs import ErrorCode, JobStatus, Phase

_WAITING = [phase.value for phase in (Phase.ACCEPTED, Phase.SUBMITTING, Phase.QUEUED)]


@dataclass(frozen=True)
class Backlog:
    """The open jobs, counted cheaply enough to be scraped every few seconds."""

    open_jobs: dict[Phase, int]  #: without the phases that no job is in
    oldest_wait_seconds: float | None  #: of the jobs that wait for a worker
    overdue_seconds: float  #: of the job that is overdue for longest
    stalled: int
    orphans: int


@dataclass(frozen=True)
class Ended:
    """The jobs that ended in one hour with one provider, status and error code."""

    hour: int  #: hours since the epoch
    provider: str | None  #: of the newest attempt
    status: JobStatus
    error_code: ErrorCode | None
    jobs: int
    gpu_seconds: float
    cost_usd: float | None


class Reports:
    """Reads the figures; changes nothing."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def backlog(self, now: int) -> Backlog:
        """Returns the open jobs' figures."""
        # After a retry, the wait of the newest attempt counts.
        since = func.coalesce(JOBS.c.progressed_at, JOBS.c.created_at)
        phases = select(
            JOBS.c.phase,
            func.count().label("jobs"),
            func.min(since).label("oldest"),
            func.min(JOBS.c.due_at).label("due"),
            func.count(JOBS.c.stalled_since).label("stalled"),
        )
        phases = phases.where(JOBS.c.status.in_(OPEN)).group_by(JOBS.c.phase)
        orphans = select(func.count()).where(ATTEMPTS.c.orphan_due_at.is_not(None))
        with self._engine.begin() as connection:
            rows = connection.execute(phases).all()
            given_up = connection.execute(orphans).scalar_one()
        oldest = min((row.oldest for row in rows if row.phase in _WAITING), default=None)
        return Backlog(
            open_jobs={Phase(row.phase): row.jobs for row in rows},
            oldest_wait_seconds=None if oldest is None else max(0.0, (now - oldest) / 1000),
            overdue_seconds=max([0.0, *((now - row.due) / 1000 for row in rows)]),
            stalled=sum(row.stalled for row in rows),
            orphans=given_up,
        )

    def ended_since(self, moment: int) -> list[Ended]:
        """Returns the jobs that have ended since a moment, counted by hour."""
        hour = (JOBS.c.completed_at // HOUR_MS).label("hour")
        kind = JOBS.c.provider, JOBS.c.status, JOBS.c.error_code
        sums = func.coalesce(func.sum(JOBS.c.gpu_seconds), 0.0), func.sum(JOBS.c.cost_usd)
        query = select(hour, *kind, func.count(), *sums).where(JOBS.c.completed_at >= moment)
        with self._engine.begin() as connection:
            rows = connection.execute(query.group_by("hour", *kind)).all()
        return [
            Ended(row[0], row[1], JobStatus(row[2]), row[3] and ErrorCode(row[3]), *row[4:])
            for row in rows
        ]

    def places(self) -> dict[Place, int]:
        """Returns the places that have attempts of open jobs, or orphans, and how many each."""
        is_open = ATTEMPTS.c.state.in_([AttemptState.SUBMITTING, AttemptState.SUBMITTED])
        there = or_(is_open, ATTEMPTS.c.orphan_due_at.is_not(None))
        query = select(ATTEMPTS.c.provider, ATTEMPTS.c.target, func.count()).where(there)
        with self._engine.begin() as connection:
            rows = connection.execute(query.group_by(ATTEMPTS.c.provider, ATTEMPTS.c.target)).all()
        return {Place(provider, target): count for provider, target, count in rows}

    def stalled(self, limit: int) -> list[Job]:
        """Returns the open jobs that seem stuck, the longest first."""
        query = select(JOBS).where(JOBS.c.status.in_(OPEN), JOBS.c.stalled_since.is_not(None))
        query = query.order_by(JOBS.c.stalled_since).limit(limit)
        with self._engine.begin() as connection:
            return [as_job(row) for row in connection.execute(query).mappings()]
