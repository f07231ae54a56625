"""The operator's overview: the jobs of all users, and the provider's queue and workers."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from starlette.concurrency import run_in_threadpool

from broker.clock import DAY_MS, HOUR_MS, iso, now_ms
from broker.errors import ProviderError
from broker.jobs.model import Job, provider_ids
from broker.jobs.observation import Health
from broker.jobs.place import Place as Where
from broker.jobs.pricing import cost
from broker.providers.registry import Providers
from broker.settings import Settings
from broker.store.jobs import JobStore
from broker.store.reports import Backlog, Ended, Reports
from schemas.fleet import Fleet, Hour, Orphan, Place, StalledJob, Tally, Workers
from schemas.jobs import ErrorCode, JobStatus

HOURS = 24
#: How old the provider's report may be; any number of requests cost one call in this time.
HEALTH_SECONDS = 5.0
MOST_STALLED = 50


class Overview:
    """Reads everything; changes nothing."""

    def __init__(
        self,
        settings: Settings,
        reports: Reports,
        store: JobStore,
        providers: Providers,
        clock: Callable[[], int] = now_ms,
    ) -> None:
        self._settings = settings
        self._reports = reports
        self._store = store
        self._providers = providers
        self._clock = clock
        self._lock = asyncio.Lock()
        self._reported_at = 0
        self._places: list[Place] = []

    async def fleet(self, draining: bool) -> Fleet:
        """Returns the overview; a provider that does not answer is reported in it."""
        places = await self.places()
        return await run_in_threadpool(self._count, draining, places)

    def backlog(self) -> Backlog:
        """Returns the open jobs' figures; blocks."""
        return self._reports.backlog(self._clock())

    async def places(self) -> list[Place]:
        """Returns the providers' reports, a few seconds old."""
        async with self._lock:
            if self._clock() - self._reported_at >= HEALTH_SECONDS * 1000:
                self._places = list(
                    await asyncio.gather(*map(self._report, self._providers.places))
                )
                self._reported_at = self._clock()
            return self._places

    async def _report(self, place: Where) -> Place:
        try:
            async with asyncio.timeout(HEALTH_SECONDS):
                health = await self._providers.named(place.provider).health(place.target)
                return _shown(place, health)
        except ProviderError as error:
            return Place(provider=place.provider, target=place.target, error=str(error))
        except TimeoutError:
            sentence = f"The GPU provider did not answer within {HEALTH_SECONDS:g} s."
            return Place(provider=place.provider, target=place.target, error=sentence)

    def _count(self, draining: bool, places: list[Place]) -> Fleet:
        now = self._clock()
        first = (now // HOUR_MS - HOURS + 1) * HOUR_MS
        backlog, ended = self._reports.backlog(now), self._reports.ended_since(first)
        today = [row for row in ended if row.hour * HOUR_MS >= now - now % DAY_MS]
        codes = Counter[ErrorCode]()
        for row in ended:
            if row.error_code is not None:
                codes[row.error_code] += row.jobs
        return Fleet(
            at=iso(now),
            draining=draining,
            open_jobs=backlog.open_jobs,
            oldest_wait_seconds=backlog.oldest_wait_seconds,
            places=places,
            today=_tally(today),
            today_by_provider={
                name: _tally(row for row in today if row.provider == name)
                for name in sorted({row.provider for row in today if row.provider is not None})
            },
            hours=[
                _hour(ended, hour) for hour in range(first // HOUR_MS, first // HOUR_MS + HOURS)
            ],
            error_codes=dict(codes.most_common()),
            stalled=[_stalled(job) for job in self._reports.stalled(MOST_STALLED)],
            orphans=orphans(self._store, self._settings.gpu_prices, now),
        )


def orphans(store: JobStore, prices: Mapping[str, float], now: int) -> list[Orphan]:
    """Returns the orphaned runs, with the most that each may have cost."""
    found = []
    for job, attempt in store.orphans():
        seconds = (now - (attempt.submitted_at or now)) / 1000
        found.append(
            Orphan(
                job_id=job.id,
                attempt=attempt.number,
                provider=attempt.provider,
                **provider_ids(attempt.provider, attempt.provider_job_id),
                given_up_at=None if attempt.ended_at is None else iso(attempt.ended_at),
                why=attempt.error_code or job.status,
                seconds_at_most=round(seconds),
                usd_at_most=cost(prices, None, seconds, attempt.provider),
            )
        )
    return found


def _hour(ended: Iterable[Ended], hour: int) -> Hour:
    tally = _tally(row for row in ended if row.hour == hour)
    return Hour(at=iso(hour * HOUR_MS), **tally.model_dump())


def _tally(ended: Iterable[Ended]) -> Tally:
    rows = list(ended)
    jobs = Counter[JobStatus]()
    for row in rows:
        jobs[row.status] += row.jobs
    costs = [row.cost_usd for row in rows if row.cost_usd is not None]
    return Tally(
        complete=jobs[JobStatus.COMPLETE],
        error=jobs[JobStatus.ERROR],
        cancelled=jobs[JobStatus.CANCELLED],
        gpu_seconds=round(sum(row.gpu_seconds for row in rows), 3),
        cost_usd=round(sum(costs), 6) if costs else None,
    )


def _stalled(job: Job) -> StalledJob:
    fields = job.model_dump(include={"user_id", "type", "phase", "progress"})
    return StalledJob(job_id=job.id, since=iso(job.stalled_since or 0), **fields)


def _shown(place: Where, health: Health) -> Place:
    workers = Workers(
        idle=health.workers_idle,
        running=health.workers_running,
        starting=health.workers_starting,
        throttled=health.workers_throttled,
        unhealthy=health.workers_unhealthy,
    )
    return Place(
        provider=place.provider,
        target=place.target,
        queued=health.jobs_queued,
        running=health.jobs_running,
        workers=workers,
    )
