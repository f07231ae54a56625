"""Given-up attempts that may still run at the provider, where they would be paid for: cancelled until they are gone."""

from collections.abc import Callable

import structlog
from starlette.concurrency import run_in_threadpool

from broker.engine.observe import Observer
from broker.jobs.decide import seconds_since
from broker.providers.registry import Providers
from broker.store.jobs import JobStore
from broker.trace import follow

log = structlog.get_logger(__name__)

ORPHAN_SECONDS = 30.0


class Orphans:
    """Releases what nobody wants any more."""

    def __init__(
        self, store: JobStore, observer: Observer, providers: Providers, clock: Callable[[], int]
    ) -> None:
        self._store = store
        self._observer = observer
        self._providers = providers
        self._clock = clock

    async def release(self, token: str) -> None:
        """Sees to it that a given-up attempt no longer runs.

        Raises:
            BrokerError: something could not be reached; it is due again later.
        """
        job, attempt = await run_in_threadpool(self._store.orphan, token)
        follow(job)
        now = self._clock()
        attempt = attempt.evolve(orphan_due_at=now + int(ORPHAN_SECONDS * 1000))
        await run_in_threadpool(self._store.note, attempt)
        if attempt.provider_job_id is None and (
            started := await self._observer.started(job, attempt)
        ):
            attempt = attempt.evolve(provider_job_id=started.provider_job_id)
        if attempt.provider_job_id is not None:
            await self._providers.of(attempt).cancel(attempt.target, attempt.provider_job_id)
            remote = await self._observer.remote(attempt)
            if remote.state.is_over:
                attempt = attempt.evolve(orphan_due_at=None, gpu_seconds=remote.execution_seconds)
        elif seconds_since(attempt.submitted_at, now) > (attempt.ttl_seconds or 0):
            attempt = attempt.evolve(orphan_due_at=None)  # it cannot be there any more
        if attempt.orphan_due_at is None:
            log.info("orphan_gone", provider_job_id=attempt.provider_job_id)
        await run_in_threadpool(self._store.note, attempt)
